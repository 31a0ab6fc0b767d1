"""prosparse in the lm-evaluation-harness: offline tasks from local files; exact scores are dense ones."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_engine import make_model

import prosparse
from prosparse.errors import UserError

if os.environ.get("CI") != "true":  # there it is installed, and nothing may be left out
    pytest.importorskip("lm_eval", reason="needs the extra [eval]")

from harness_tasks import ITEMS, book_items, word_items, write_tasks
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from prosparse.hf.harness import ProsparseLM, sampling_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("harness") / "model", family="minicpm", tied=True)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def evaluate(arguments: dict[str, Any], tasks: TaskManager, names: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"bootstrap_iters": 0, "log_samples": True}
    out = simple_evaluate("prosparse", arguments, tasks=names, task_manager=tasks, batch_size=4, **options)
    answers = {name: [sample["filtered_resps"] for sample in out["samples"][name]] for name in names}
    return {"results": {name: out["results"][name] for name in names}, "answers": answers}


def test_exact_scores_equal_dense_scores_and_predicted_ones_are_close(tmp_path: Path) -> None:
    """200 items on the packaged model, which knows the right words more often than not, with its own predictor."""
    tasks = write_tasks(tmp_path, book_items())
    dense, exact, predicted = (
        evaluate({"mode": mode}, tasks, ["local_choice"]) for mode in ("dense", "exact", "predicted")
    )
    assert len(exact["answers"]["local_choice"]) == ITEMS
    assert exact == dense
    right = [each["results"]["local_choice"]["acc,none"] for each in (exact, predicted)]
    assert 0.6 < right[0] < 1 and abs(right[1] - right[0]) <= 0.03
    scores = [
        torch.tensor([[score for score, _ in item] for item in each["answers"]["local_choice"]])
        for each in (exact, predicted)
    ]
    apart = float((scores[1] - scores[0]).abs().mean())
    assert 0 < apart < 0.1, "nats of some 28; a guess misses something"


def test_a_predictor_can_be_named(folder: Path) -> None:
    chosen = Path(prosparse.__file__).parent / "assets" / "relu-llama-14m" / "predictor.safetensors"
    model = ProsparseLM(mode="predicted", predictor=str(chosen))
    assert model.engine.plan.mode == "predicted"
    with pytest.raises(UserError, match="predictor: has 6 layers, the model 2"):
        ProsparseLM(pretrained=str(folder), mode="predicted", predictor=str(chosen))


def test_rolling_and_generation_tasks(folder: Path, tmp_path: Path) -> None:
    tasks, names = write_tasks(tmp_path, word_items()), ["local_text", "local_answer"]
    dense, exact = (
        evaluate({"pretrained": str(folder), "mode": mode, "weights": "fp32"}, tasks, names)
        for mode in ("dense", "exact")
    )
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
