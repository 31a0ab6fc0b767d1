"""Native MiniCPM-S: against the float64 formulas, and against its own weights folded into llama format."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from float64_forward import forward
from hf_llama import hf_logits, load_hf
from safetensors.torch import load_file, save_file
from tiny_engine import assert_logits_close, decoded_logits, make_model, some_tokens
from tiny_tokenizer import write_tokenizer

import prosparse
from prosparse.errors import UserError

CASES: dict[str, dict[str, Any]] = {
    "tied-by-default": {"tied": True, "tie_word_embeddings": None},
    "odd-untied": {"hidden": 60, "neurons": 77, "heads": 6, "kv_heads": 3, "head_dim": 10, "layers": 3, "shards": 2},
    "other-scales": {
        "tied": True,
        "scale_emb": 2.5,
        "scale_depth": 0.7,
        "dim_model_base": 256,
        "kv_heads": 4,
        "seed": 1,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_float64_formulas(name: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="minicpm", **CASES[name])
    ids = some_tokens(90, seed=1)
    trace = forward(folder, ids)
    assert_no_gate_at(trace, 0.25)
    for mode in ("dense", "exact"):
        engine = prosparse.load(folder, mode=mode, weights="fp32")
        assert_logits_close(engine.logits(ids), trace.logits, f"{name} {mode} prefill")
        assert_logits_close(decoded_logits(engine, ids), trace.logits, f"{name} {mode} decode")


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_llama_format_of_the_same_weights(name: str, tmp_path: Path) -> None:
    native = make_model(tmp_path / "native", family="minicpm", **CASES[name])
    folded = fold(native, tmp_path / "folded")
    ids = some_tokens(60, seed=1)
    assert_no_gate_at(forward(native, ids), 0.25)
    expected = prosparse.load(native, mode="dense", weights="fp32").logits(ids)
    assert_logits_close(hf_logits(load_hf(folded), ids), expected, f"{name}: transformers")
    for mode in ("dense", "exact"):
        engine = prosparse.load(folded, mode=mode, weights="fp32")
        assert engine.config.residual_scale == 1
        assert_logits_close(engine.logits(ids), expected, f"{name}: folded, {mode} prefill")
        assert_logits_close(decoded_logits(engine, ids), expected, f"{name}: folded, {mode} decode")


def test_llama_format_with_its_threshold_dropped_says_how_to_restore_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = make_model(tmp_path / "native", family="minicpm", tied=True)
    folded = fold(native, tmp_path / "folded", hidden_act="relu", hidden_act_param=None)
    monkeypatch.setattr(logging.getLogger("prosparse"), "propagate", True)
    with caplog.at_level(logging.WARNING, "prosparse"):
        relu = prosparse.load(folded, weights="fp32")
    assert "--fatrelu-threshold" in caplog.text
    restored = prosparse.load(folded, weights="fp32", fatrelu_threshold=0.25)
    ids = some_tokens(60, seed=1)
    expected = forward(native, ids).logits
    assert_logits_close(decoded_logits(restored, ids), expected, "threshold restored")
    with pytest.raises(AssertionError, match="relative error"):
        assert_logits_close(relu.logits(ids), expected, "relu is another model")
    assert_logits_close(relu.logits(ids), forward(native, ids, hidden_act="relu").logits, "relu")


def test_silu_sibling_runs_dense_and_refuses_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "model", family="minicpm", tied=True, hidden_act="silu", hidden_act_param=None)
    monkeypatch.setattr(logging.getLogger("prosparse"), "propagate", True)
    with caplog.at_level(logging.INFO, "prosparse"):
        engine = prosparse.load(folder, weights="fp32")
    assert engine.plan.mode == "dense"
    assert "silu makes no exact zeros" in caplog.text
    ids = some_tokens(60, seed=1)
    expected = forward(folder, ids).logits
    assert_logits_close(engine.logits(ids), expected, "silu prefill")
    assert_logits_close(decoded_logits(engine, ids), expected, "silu decode")
    assert engine.generate("abc", max_new_tokens=3).stats["activation_sparsity"]["mean"] == 0
    with pytest.raises(UserError, match="mode exact needs an activation that makes exact zeros.*silu.*--mode dense"):
        prosparse.load(folder, mode="exact")


def assert_no_gate_at(trace: Any, threshold: float) -> None:
    """FATReLU jumps at its threshold, so either side is right within rounding; these seeds keep clear of it."""
    largest = max(float(gate.abs().max()) for gate in trace.gates)
    distance = trace.nearest_to(threshold)
    assert distance > 1e-6 * largest, f"a gate is {distance:.1e} from the threshold; choose another seed for this test"


def fold(native: Path, folder: Path, **changes: Any) -> Path:
    """MiniCPM's scalars multiplied into the weights of a plain llama, as its conversion script does."""
    config = json.loads((native / "config.json").read_text())
    tensors = {name: t.double() for file in native.glob("*.safetensors") for name, t in load_file(file).items()}
    depth = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    tensors["lm_head.weight"] = head / (config["hidden_size"] / config["dim_model_base"])
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * config["scale_emb"]
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = tensors[name] * depth
    plain = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    kept = {key: value for key, value in config.items() if key != "auto_map"}
    folder.mkdir()
    written = {key: value for key, value in {**kept, **plain, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(written))
    save_file({name: t.to(torch.float32).contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return write_tokenizer(folder)
