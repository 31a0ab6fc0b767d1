"""OPT, Falcon and MiniCPM-MoE from every kind of folder: .bin converted, packed, refused where they are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity.rows import ROWS, Row
from safetensors.torch import load_file, save_file
from tiny_engine import decoded_logits, some_tokens
from tiny_vision import write_minicpmv

import prosparse
from prosparse.config import ModelConfig
from prosparse.errors import CheckpointError
from prosparse.weights import Checkpoint, convert, load_weights

FAMILIES = [row for row in ROWS if row.write is not None]
# a MiniCPM-V folder holds more than its language model: tests/parity/test_vision.py
ALONE = [row for row in FAMILIES if row.write is not write_minicpmv]
IDS = some_tokens(12, seed=8)


def edit(folder: Path, remove: str = "", **added: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors") | added
    save_file({name: t for name, t in tensors.items() if name != remove}, folder / "model.safetensors")


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.model)
def test_converted_folders_hold_the_same_model(row: Row, weights: str, tmp_path: Path) -> None:
    folder = row.make(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    direct = prosparse.load(folder, weights="fp32" if weights == "auto" else weights)
    (folder / "model.safetensors").unlink()
    made = convert(folder, tmp_path / "made", weights=weights)
    loaded = prosparse.load(made, weights="fp32" if weights == "auto" else "auto")
    assert loaded.decoder.blocks[0][1].gate.format == direct.decoder.blocks[0][1].gate.format
    assert torch.equal(decoded_logits(loaded, IDS), decoded_logits(direct, IDS))
    stored = Checkpoint(made)
    for name in stored.names():
        if name.endswith(("embed_positions.weight", "mlp.gate.weight")):
            assert stored.dtype(name) == torch.float32, "small tables stay floats"


@pytest.mark.parametrize("row", ALONE, ids=lambda row: row.model)
def test_a_tensor_that_is_missing_or_not_known(row: Row, tmp_path: Path) -> None:
    folder = row.make(tmp_path / "model")
    names = list(load_file(folder / "model.safetensors"))
    gone = next(name for name in names if ("layers.1." in name or "h.1." in name) and name.endswith("weight"))
    edit(folder, remove=gone)
    with pytest.raises(CheckpointError, match=f"1 of {len(names)} tensors are missing: {gone}"):
        prosparse.load(folder)
    edit(folder, **{gone: torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=rf"{gone} is \[3, 3\], but config.json makes it"):
        prosparse.load(folder)
    folder = row.make(tmp_path / "other")
    edit(folder, surprise=torch.zeros(3))
    family = json.loads((folder / "config.json").read_text())["model_type"]
    with pytest.raises(CheckpointError, match=f"holds what a {family} model does not have: surprise"):
        prosparse.load(folder)


def test_biases_and_norms_of_opt(tmp_path: Path) -> None:
    folder = next(row for row in ROWS if row.model == "OPT-125M to 66B").make(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    loaded = load_weights(Checkpoint(folder), ModelConfig.from_hf(folder), "fp32")
    layer, own = loaded.layers[1], "model.decoder.layers.1"
    q, k, v = (stored[f"{own}.self_attn.{name}_proj.bias"] for name in "qkv")
    assert torch.equal(layer.qkv_bias, torch.cat([q, k, v]))
    for held, name in (
        (layer.o_bias, "self_attn.out_proj.bias"),
        (layer.gate_bias, "fc1.bias"),
        (layer.down_bias, "fc2.bias"),
        (layer.attention_norm_bias, "self_attn_layer_norm.bias"),
        (layer.ffn_norm, "final_layer_norm.weight"),
    ):
        assert torch.equal(held, stored[f"{own}.{name}"])
    assert layer.up is None and layer.router is None
    assert torch.equal(layer.down.codes, stored[f"{own}.fc2.weight"].t())
    assert torch.equal(loaded.positions, stored["model.decoder.embed_positions.weight"])


def test_experts_lie_one_below_the_other(tmp_path: Path) -> None:
    folder = next(row for row in ROWS if row.model == "MiniCPM-MoE-8x2B").make(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    layer = load_weights(Checkpoint(folder), ModelConfig.from_hf(folder), "fp32").layers[2]
    for e in range(8):
        rows, own = slice(e * 40, (e + 1) * 40), f"model.layers.2.mlp.experts.{e}"
        assert torch.equal(layer.gate.codes[rows], stored[f"{own}.w1.weight"])
        assert torch.equal(layer.up.codes[rows], stored[f"{own}.w3.weight"])
        assert torch.equal(layer.down.codes[rows], stored[f"{own}.w2.weight"].t())
    assert torch.equal(layer.router, stored["model.layers.2.mlp.gate.weight"])
