"""patched(): what is loaded inside is accelerated, and outside everything is transformers' own."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, PreTrainedConfig
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

import prosparse
from prosparse.errors import UserError
from prosparse.hf import bamboo, register

NAMES = [(modeling_llama, "LlamaMLP"), (modeling_mistral, "MistralMLP"), (bamboo, "BambooMLP")]


def replaced() -> list[Any]:
    return [*(getattr(module, name) for module, name in NAMES), PreTrainedConfig.__dict__["get_config_dict"]]


def class_of_ffn(model: Any) -> str:
    return type(model.model.layers[0].mlp).__name__


def test_accelerates_inside_and_only_inside(
    llama_folder: Path, reference: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = replaced()
    monkeypatch.setattr(logging.getLogger("prosparse"), "propagate", True)
    load = transformers.AutoModelForCausalLM.from_pretrained
    with caplog.at_level(logging.INFO, "prosparse"), prosparse.patched():
        inside = load(llama_folder)
        direct = transformers.LlamaForCausalLM.from_pretrained(llama_folder)
    assert "patched: 6 FFNs run exact (relu)" in caplog.text
    assert replaced() == before
    outside = load(llama_folder)
    assert [class_of_ffn(m) for m in (inside, direct, outside)] == ["AcceleratedLlamaMLP"] * 2 + ["LlamaMLP"]
    ids = torch.tensor([[1, 40, 41, 42, 90, 91, 92]])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = reference.generate(ids, **options)
    assert torch.equal(inside.generate(ids, **options), expected)
    prosparse.restore(inside)
    assert type(inside.model.layers[0].mlp) is modeling_llama.LlamaMLP
    inside.train().eval()
    assert class_of_ffn(inside) == "LlamaMLP", "restored is restored"
    assert torch.equal(inside.generate(ids, **options), expected)


def test_nests_and_survives_errors(llama_folder: Path) -> None:
    before = replaced()
    with pytest.raises(ZeroDivisionError), prosparse.patched():
        with prosparse.patched("dense"):
            dense = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
        exact = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
        raise ZeroDivisionError
    assert (dense.model.layers[0].mlp.mode, exact.model.layers[0].mlp.mode) == ("dense", "exact")
    assert replaced() == before
    with pytest.raises(UserError, match="mode is 'fast'"), prosparse.patched("fast"):
        pass


def test_threads_load_one_after_the_other(llama_folder: Path) -> None:
    before = replaced()
    models: list[Any] = []

    def load() -> None:
        models.append(prosparse.AutoModelForCausalLM.from_pretrained(llama_folder))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [class_of_ffn(model) for model in models] == ["AcceleratedLlamaMLP"] * 3
    assert replaced() == before


def test_from_config_is_accelerated_when_put_into_eval_mode() -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        hidden_act="relu",
    )
    assert class_of_ffn(prosparse.AutoModelForCausalLM.from_config(config)) == "AcceleratedLlamaMLP"
    with prosparse.patched():
        model = transformers.LlamaForCausalLM(config)
    assert class_of_ffn(model) == "LlamaMLP"
    assert class_of_ffn(model.eval()) == "AcceleratedLlamaMLP"


def test_registering_twice_changes_nothing(tmp_path: Path) -> None:
    register()
    register()
    config = transformers.AutoConfig.for_model("sparsellama", hidden_act="fatrelu", hidden_act_param=0.02)
    config.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).hidden_act_param == 0.02
