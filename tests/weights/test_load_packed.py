"""int8 and int4 weights in memory are those of `quantize`, in every layout, with lm_head in a format of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import FAMILIES, write_tiny

from prosparse.config import ModelConfig
from prosparse.errors import CheckpointError, UserError
from prosparse.kernels.quant import GROUP, quantize
from prosparse.kernels.weight import FORMATS, LAYOUTS, Weight, bytes_per_row
from prosparse.weights import Checkpoint, ModelWeights, load_weights

PACKED = sorted(GROUP)


def load(folder: Path, fmt: str = "auto", layout: str = "rows", **options) -> ModelWeights:
    config = ModelConfig.from_hf(folder)
    return load_weights(Checkpoint(folder), config, fmt, layouts=[layout] * config.layers, **options)


def assert_holds(weight: Weight, fmt: str, matrix: torch.Tensor) -> None:
    """The weight is the matrix in a format, bit for bit."""
    assert weight.format == fmt and weight.shape == tuple(matrix.shape)
    expected = quantize(matrix.contiguous(), fmt) if fmt in GROUP else matrix.to(FORMATS[fmt])
    assert torch.equal(weight.codes, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fmt", PACKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_matrix_is_quantised(tmp_path, family, fmt, layout):
    """600 neurons are more than a block of rows, and neither they nor 80 columns fill the last group."""
    folder = write_tiny(tmp_path, family=family, hidden=80, head_dim=20, neurons=600, dtype=torch.float16)
    stored = load_file(folder / "model.safetensors")
    loaded = load(folder, fmt, layout)
    assert_holds(loaded.embed, fmt, stored["model.embed_tokens.weight"])
    assert_holds(loaded.lm_head, fmt, stored["lm_head.weight"])
    for i, layer in enumerate(loaded.layers):
        own = {name.removeprefix(f"model.layers.{i}."): tensor for name, tensor in stored.items()}
        assert_holds(layer.qkv, fmt, torch.cat([own[f"self_attn.{part}_proj.weight"] for part in "qkv"]))
        assert_holds(layer.o, fmt, own["self_attn.o_proj.weight"])
        assert_holds(layer.gate, fmt, own["mlp.gate_proj.weight"])
        assert_holds(layer.up, fmt, own["mlp.up_proj.weight"])
        assert_holds(layer.down, fmt, own["mlp.down_proj.weight"].t())
        assert torch.equal(layer.ffn_norm, own["post_attention_layernorm.weight"].float())
    matrices = [tensor.t() if "down_proj" in name else tensor for name, tensor in stored.items() if tensor.dim() == 2]
    assert loaded.nbytes == sum(len(matrix) * bytes_per_row(fmt, matrix.shape[1]) for matrix in matrices)


@pytest.mark.parametrize("fmt", FORMATS)
def test_bundled_rows_of_a_neuron_are_adjacent(tmp_path, fmt):
    folder = write_tiny(tmp_path, neurons=101)
    rows, bundled = load(folder, fmt), load(folder, fmt, "bundled")
    for apart, together in zip(rows.layers, bundled.layers, strict=True):
        up, down = together.up.codes, together.down.codes
        assert torch.equal(up, apart.up.codes) and torch.equal(down, apart.down.codes)
        assert up.stride(0) == down.stride(0) == 2 * up.shape[1]
        assert down.data_ptr() - up.data_ptr() == together.up.row_bytes
        assert together.gate.codes.is_contiguous() and apart.up.codes.is_contiguous()
    assert rows.nbytes == bundled.nbytes


@pytest.mark.parametrize(("fmt", "head"), [("int4", "int8"), ("bf16", "int8"), ("int8", "bf16"), ("auto", "fp32")])
@pytest.mark.parametrize("tied", [True, False])
def test_lm_head_has_a_format_of_its_own(tmp_path, fmt, head, tied):
    folder = write_tiny(tmp_path, tied=tied)
    stored = load_file(folder / "model.safetensors")
    loaded = load(folder, fmt, lm_head=head)
    held = "bf16" if fmt == "auto" else fmt
    assert {layer.gate.format for layer in loaded.layers} == {held}
    embed = stored["model.embed_tokens.weight"]
    assert_holds(loaded.lm_head, head, embed if tied else stored["lm_head.weight"])
    assert_holds(loaded.embed, head if tied else held, embed)
    assert (loaded.lm_head is loaded.embed) == tied


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_not_quantised(tmp_path, name, bad):
    folder = write_tiny(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[-2:] = bad
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} has 2 of 6144 weights that are NaN or infinite"):
        load(folder, "int4", "bundled")


def test_formats_that_do_not_exist(tmp_path):
    folder = write_tiny(tmp_path)
    with pytest.raises(UserError, match="load: weights is 'int3'; supported are auto, fp32, fp16, bf16, int8, int4"):
        load(folder, "int3")
    with pytest.raises(UserError, match="load: lm_head is 'q4'; supported are auto, fp32, fp16, bf16, int8, int4"):
        load(folder, lm_head="q4")


def test_progress_ends_at_the_total(tmp_path):
    seen: list[tuple[int, int]] = []
    loaded = load(write_tiny(tmp_path), "int4", "bundled", lm_head="int8", progress=lambda *step: seen.append(step))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (loaded.nbytes, loaded.nbytes)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_as_before(tmp_path, threads, fails):
    folder = write_tiny(tmp_path)
    if fails:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"][0, 0] = float("nan")
        save_file(tensors, folder / "model.safetensors")
    torch.set_num_threads(2)
    if fails:
        with pytest.raises(CheckpointError, match="lm_head.weight has 1 of 8192 weights that are NaN"):
            load(folder, "int8")
    else:
        torch.set_num_threads(1)
        alone = load(folder, "int4")
        torch.set_num_threads(2)
        assert torch.equal(load(folder, "int4").layers[0].down.codes, alone.layers[0].down.codes)
    assert torch.get_num_threads() == 2
