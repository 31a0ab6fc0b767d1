"""A GGUF file gives the logits of the folder it was made from, bit for bit where it stores the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_writer import stored, stored_values, write_model
from safetensors.torch import load_file, save_file
from tiny_engine import assert_logits_close, decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.errors import UserError

IDS = some_tokens(70, seed=4)
ODD = {"hidden": 60, "neurons": 77, "heads": 6, "kv_heads": 3, "head_dim": 10}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-odd-tied": {**ODD, "tied": True},
    "llama-heads-wider-than-hidden": {"hidden": 64, "heads": 4, "kv_heads": 1, "head_dim": 32},
    "llama-linear-rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 5e5},
    "minicpm": {"family": "minicpm"},
    "minicpm-odd": {**ODD, "family": "minicpm"},
}


def assert_same_logits(file: Path, folder: Path, fatrelu_threshold: float | None, modes: tuple[str, ...]) -> None:
    for mode in modes:
        expected = prosparse.load(folder, mode=mode, weights="fp32", fatrelu_threshold=fatrelu_threshold)
        engine = prosparse.load(file, mode=mode, weights="fp32", fatrelu_threshold=fatrelu_threshold)
        assert engine.plan.mode == mode
        assert_logits_close(engine.logits(IDS), expected.logits(IDS), f"{file.name} {mode} prefill", 1e-6)
        assert_logits_close(decoded_logits(engine, IDS), decoded_logits(expected, IDS), f"{file.name} {mode}", 1e-6)


@pytest.mark.parametrize("powerinfer", [False, True], ids=["GGUF", "PWRI"])
@pytest.mark.parametrize("name", CASES)
def test_logits_of_the_folder(name: str, powerinfer: bool, tmp_path: Path) -> None:
    case = CASES[name]
    folder = make_model(tmp_path / "model", **case)
    arch = case.get("family", "llama")
    rope = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0} if "rope_scaling" in case else {}
    file = write_model(tmp_path / "model.gguf", folder, arch=arch, powerinfer=powerinfer, **rope)
    threshold = 0.25 if arch == "minicpm" else 0.0
    assert_same_logits(file, folder, threshold, ("dense", "exact"))


def test_bits_of_the_folder(tmp_path: Path) -> None:
    """Where a file has the folder's very constants, nothing may differ; PowerInfer's run exact without being asked."""
    for dtype, kind in ((torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")):
        folder = make_model(tmp_path / kind, dtype=dtype)
        expected = prosparse.load(folder)
        files = [write_model(tmp_path / f"{kind}.gguf", folder, kind),
                 write_model(tmp_path / f"{kind}.powerinfer.gguf", folder, kind, powerinfer=True)]  # fmt: skip
        for file, threshold in zip(files, (0.0, None), strict=True):
            engine = prosparse.load(file, fatrelu_threshold=threshold)
            assert (engine.plan.mode, engine.weights, engine.lm_head) == ("exact", expected.weights, expected.lm_head)
            assert torch.equal(engine.logits(IDS), expected.logits(IDS))
            assert engine.generate("abc", max_new_tokens=8).text == expected.generate("abc", max_new_tokens=8).text


def test_biases_of_q_and_k_are_exchanged_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    rng = torch.Generator().manual_seed(5)
    for layer in range(2):
        for part, rows in (("q", 64), ("k", 32), ("v", 32)):
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = torch.randn(rows, generator=rng)
    save_file(tensors, folder / "model.safetensors")
    file = write_model(tmp_path / "model.gguf", folder)
    engine = prosparse.load(file, weights="fp32", fatrelu_threshold=0)
    own = engine.decoder.blocks[0][0].qkv_bias
    parts = [tensors[f"model.layers.0.self_attn.{part}_proj.bias"] for part in "qkv"]
    assert own is not None and torch.equal(own, torch.cat(parts))


@pytest.mark.parametrize("powerinfer", [False, True], ids=["GGUF", "PWRI"])
@pytest.mark.parametrize(("kind", "fmt"), [("Q8_0", "int8"), ("Q4_0", "int4")])
def test_quantised_values_are_those_of_the_blocks(kind: str, fmt: str, powerinfer: bool, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", neurons=320)
    rounded = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        turned = powerinfer and "down_proj" in name
        back = stored_values(stored(tensor.t().contiguous() if turned else tensor, kind))
        rounded[name] = (back.t() if turned else back).contiguous()
    save_file(rounded, folder / "model.safetensors")
    file = write_model(tmp_path / "model.gguf", folder, kind, powerinfer=powerinfer)
    expected = prosparse.load(folder, weights="fp32").logits(IDS)
    loaded = prosparse.load(file, weights="fp32", fatrelu_threshold=0)
    assert torch.equal(loaded.logits(IDS), expected)
    held = prosparse.load(file, fatrelu_threshold=0)
    assert (held.weights, held.lm_head) == (fmt, fmt)
    own = prosparse.load(folder, weights=fmt)
    assert torch.equal(held.logits(IDS), own.logits(IDS))


def test_a_file_of_the_public_package(tmp_path: Path) -> None:
    """The packaged model, written by `gguf` itself: names from its own table, and its own quantiser."""
    gguf = pytest.importorskip("gguf", reason="the public writer is a development tool: pip install gguf")
    from gguf_public import write_public

    expected = prosparse.load(EMBEDDED_MODEL, weights="fp32")
    threshold = expected.config.activation.threshold  # which a file cannot say
    text = "The little dog said: I'm 12 years old.\n"
    ids = expected.tokenizer.encode(text)
    for powerinfer in (False, True):
        file = write_public(gguf, tmp_path / "model.gguf", EMBEDDED_MODEL, powerinfer=powerinfer)
        engine = prosparse.load(file, weights="fp32", fatrelu_threshold=threshold)
        assert engine.plan.mode == "exact" and engine.tokenizer.encode(text) == ids
        assert torch.equal(engine.logits(ids), expected.logits(ids))
    for kind, bound in (("Q8_0", 0.02), ("Q4_0", 0.1)):
        file = write_public(gguf, tmp_path / "model.gguf", EMBEDDED_MODEL, kind)
        logits = prosparse.load(file, fatrelu_threshold=threshold).logits(ids)
        assert float((logits - expected.logits(ids)).norm() / expected.logits(ids).norm()) < bound


def test_says_that_the_activation_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(tmp_path / "model", hidden_act="silu")
    file = write_model(tmp_path / "model.gguf", folder)
    engine = prosparse.load(file, weights="fp32")
    assert engine.plan.mode == "dense" and "--fatrelu-threshold 0" in caplog.text
    expected = prosparse.load(folder, weights="fp32").logits(IDS)
    assert torch.equal(engine.logits(IDS), expected)
    with pytest.raises(UserError, match="exact"):
        prosparse.load(file, mode="exact")
