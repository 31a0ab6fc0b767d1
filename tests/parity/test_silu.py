"""MiniCPM-1B and 2B have no zeros: they run dense, say so, refuse mode exact, and read int8 and int4 weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from parity.rows import FULL, ROWS, SILU, Row
from safetensors.torch import load_file, save_file
from tiny_engine import assert_logits_close, decoded_logits, some_tokens
from torch import Tensor

import prosparse
from prosparse.config import ModelConfig
from prosparse.errors import UserError
from prosparse.kernels.weight import in_format
from prosparse.weights.names import expected_shapes

LONG = next(row for row in ROWS if row.model == "MiniCPM-2B 128k")
# Parameters at full size, counted by hand from the published sizes: of an untied 1B half of a file of 2.946 GB.
PARAMETERS = {"MiniCPM-1B sft": 1_360_246_272, "MiniCPM-2B sft": 2_724_880_896, "MiniCPM-2B 128k": 3_007_736_064}


@pytest.mark.parametrize("row", SILU, ids=lambda row: row.model)
def test_runs_dense_and_says_so(
    row: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = row.make(tmp_path / "model")
    monkeypatch.setattr(logging.getLogger("prosparse"), "propagate", True)
    with caplog.at_level(logging.INFO, "prosparse"):
        engine = prosparse.load(folder, weights="fp32")
    assert engine.plan.mode == "dense" and "silu makes no exact zeros" in caplog.text
    assert all(run.whole is not None for run in engine.decoder._runs), "a dense model decodes all layers in one call"
    with pytest.raises(UserError, match="mode exact needs an activation that makes exact zeros.*silu.*--mode dense"):
        prosparse.load(folder, mode="exact")


@pytest.mark.parametrize("model", PARAMETERS)
def test_full_size_holds_the_published_number_of_parameters(model: str) -> None:
    row = next(row for row in ROWS if row.model == model)
    shapes = expected_shapes(ModelConfig.from_hf(row.published()))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == PARAMETERS[model]


def test_128k_stretches_its_angles_beyond_what_it_was_trained_for(tmp_path: Path) -> None:
    row = Row(LONG.model, LONG.config, {**FULL, "vocab": 264}, {"max_position_embeddings": 64})
    folder, ids = row.make(tmp_path / "model"), some_tokens(150, seed=3)
    for length in (64, 150):
        engine = prosparse.load(folder, weights="fp32", context=length)
        expected = row.expected(folder, ids[:length])
        assert_logits_close(engine.logits(ids[:length]), expected, f"prefill of {length}")
        assert_logits_close(decoded_logits(engine, ids[:length], prefix=length - 9), expected[-9:], f"decode {length}")


@pytest.mark.parametrize(("weights", "lm_head"), [("int8", "auto"), ("int4", "auto"), ("int4", "int8")])
@pytest.mark.parametrize("row", [SILU[0], SILU[1], LONG], ids=lambda row: row.model)
def test_packed_weights_compute_what_they_hold(row: Row, weights: str, lm_head: str, tmp_path: Path) -> None:
    """Against float64 over the values that the packed weights stand for: what is left is a bf16 cache, 2^-9."""
    folder, ids = row.make(tmp_path / "model"), some_tokens(40, seed=4)
    engine = prosparse.load(folder, weights=weights, lm_head=lm_head)
    assert engine.decoder.blocks[0][1].gate.format == weights
    held = unpacked(folder, tmp_path / "held", weights, weights if lm_head == "auto" else lm_head)
    assert_logits_close(decoded_logits(engine, ids), row.expected(held, ids), f"{row.model} {weights}", 1e-2)


def unpacked(folder: Path, target: Path, weights: str, lm_head: str) -> Path:
    """A float model of the values that a packed one has, every matrix rounded row by row, down transposed."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    tied = "lm_head.weight" not in tensors

    def rounded(name: str, tensor: Tensor) -> Tensor:
        if tensor.dim() == 1:
            return tensor
        fmt = lm_head if name == "lm_head.weight" or (tied and "embed_tokens" in name) else weights
        if "down_proj" in name:
            return in_format(tensor.t().contiguous(), fmt).values().t().contiguous()
        return in_format(tensor, fmt).values()

    save_file({name: rounded(name, tensor) for name, tensor in tensors.items()}, target / "model.safetensors")
    return target
