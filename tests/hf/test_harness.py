"""prosparse in the lm-evaluation-harness: offline tasks from a local file, the same scores dense and exact."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_engine import make_model

import prosparse
from prosparse.errors import UserError

pytest.importorskip("lm_eval", reason="needs the extra [eval]")

from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from prosparse.hf.harness import ProsparseLM, sampling_params

ITEMS = 200
TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "local_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("harness") / "model", family="minicpm", tied=True)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    where = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    words = ["stone", "river", "seven", "cloud", "iron", "moss", "lamp", "a tree", "night"]
    with open(where / "items.jsonl", "w", encoding="utf-8") as file:
        for _ in range(ITEMS):
            choices = [" " + word for word in rng.sample(words, 3)]
            item = {"question": " ".join(rng.sample(words, 4)), "choices": choices, "answer": rng.randrange(3)}
            file.write(json.dumps(item) + "\n")
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(where / "items.jsonl")}}}
        (where / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **source, **task}))
    return TaskManager(include_path=str(where), include_defaults=False)


def evaluate(folder: Path, mode: str, tasks: TaskManager, names: list[str], limit: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {"limit": limit, "bootstrap_iters": 0, "log_samples": True}
    arguments = {"pretrained": str(folder), "mode": mode, "weights": "fp32"}
    out = simple_evaluate("prosparse", arguments, tasks=names, task_manager=tasks, batch_size=4, **options)
    answers = {name: [sample["filtered_resps"] for sample in out["samples"][name]] for name in names}
    return {"results": {name: out["results"][name] for name in names}, "answers": answers}


def test_exact_scores_equal_dense_scores(folder: Path, tasks: TaskManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = ["local_choice"]
    dense, exact = (evaluate(folder, mode, tasks, names, limit=None) for mode in ("dense", "exact"))
    assert len(exact["answers"]["local_choice"]) == ITEMS
    assert exact == dense
    assert 0 < exact["results"]["local_choice"]["acc,none"] < 1


def test_rolling_and_generation_tasks(folder: Path, tasks: TaskManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = ["local_text", "local_answer"]
    dense, exact = (evaluate(folder, mode, tasks, names, limit=20) for mode in ("dense", "exact"))
    assert exact == dense
    assert exact["results"]["local_text"]["bits_per_byte,none"] > 0
    assert all("e" not in text for text, *_ in exact["answers"]["local_answer"])


def test_scores_are_those_of_the_logits(folder: Path) -> None:
    model = get_model("prosparse")(pretrained=str(folder), weights="fp32")
    assert isinstance(model, ProsparseLM)
    context, continuation = (
        model.tok_encode("the river runs"),
        model.tok_encode(" under the seven stones, slowly", False),
    )
    logits = model.engine.logits([*context, *continuation]).double().log_softmax(-1)
    rows = logits[len(context) - 1 : -1]
    expected = float(rows.gather(1, torch.tensor(continuation)[:, None]).sum())
    score, greedy = model.loglikelihood([request("the river runs", " under the seven stones, slowly")])[0]
    assert score == pytest.approx(expected, rel=1e-5) and greedy is False
    assert model._score(context, [int(logits[len(context) - 1].argmax())])[1] is True
    (rolled,) = model.loglikelihood_rolling([request("the river runs")])
    ids = model.tok_encode("the river runs")
    own = model.engine.logits(ids).double().log_softmax(-1)[:-1]
    assert rolled == pytest.approx(float(own.gather(1, torch.tensor(ids[1:])[:, None]).sum()), rel=1e-5)


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_texts_longer_than_the_context(folder: Path) -> None:
    model = ProsparseLM(pretrained=str(folder), weights="fp32", context=32)
    text = "moss on iron " * 12
    (rolled,) = model.loglikelihood_rolling([request(text)])
    assert rolled < 0
    context, continuation = model.tok_encode(text), [40, 50, 60]
    assert model._score(context, continuation) == model._score(context[-30:], continuation), "the latest tokens stay"
    with pytest.raises(UserError, match="continuation of 40 tokens does not fit"):
        model._score([1], [5] * 40)
    texts = model.generate_until([request(text, {"until": ["e"], "max_gen_toks": 4})])
    assert len(texts) == 1


def test_bos_rule(folder: Path, tmp_path: Path) -> None:
    minicpm = ProsparseLM(pretrained=str(folder))
    assert minicpm.tok_encode("ab")[0] == 1 and minicpm.tok_encode("<s>ab").count(1) == 1
    assert minicpm.tok_encode("ab", add_special_tokens=False)[0] != 1
    assert ProsparseLM(pretrained=str(folder), add_bos_token=False).tok_encode("ab")[0] != 1
    assert minicpm.prefix_token_id == 1 and minicpm.eot_token_id == 2


def test_chat_template(folder: Path) -> None:
    model = ProsparseLM(pretrained=str(folder))
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "[user]hi>"
    assert model.chat_template(True) == model.tokenizer.chat_template
    assert isinstance(model.tokenizer_name, str)


def test_generation_arguments() -> None:
    greedy = sampling_params({"until": ["\n"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 5})
    assert greedy == prosparse.SamplingParams(max_new_tokens=5, stop=("\n",))
    sampled = sampling_params({"do_sample": True, "top_p": 0.9, "until": "x"})
    assert (sampled.temperature, sampled.top_p, sampled.max_new_tokens, sampled.stop) == (1.0, 0.9, 256, ("x",))
    with pytest.raises(UserError, match="'num_beams' is not known"):
        sampling_params({"num_beams": 4})
