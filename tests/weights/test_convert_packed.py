"""A folder converted to int8 or int4 loads as the same bits as its source quantised on load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_engine import make_model, some_tokens
from tiny_model import write_tiny
from watched_memory import anonymous_bytes

import prosparse
from prosparse.config import ModelConfig
from prosparse.errors import CheckpointError, UnsupportedError, UserError
from prosparse.kernels.weight import FORMATS
from prosparse.weights import Checkpoint, ModelWeights, convert, load_weights
from prosparse.weights.formats import KEY

SIZES = dict(hidden=80, head_dim=20, neurons=300)
CHOICES = [("int8", "auto"), ("int4", "auto"), ("int4", "int8"), ("int4", "bf16"), ("bf16", "int8"), ("auto", "int4")]


def load(folder: Path, fmt: str = "auto", lm_head: str = "auto", layout: str = "rows") -> ModelWeights:
    config = ModelConfig.from_hf(folder)
    return load_weights(Checkpoint(folder), config, fmt, lm_head=lm_head, layouts=[layout] * config.layers)


def assert_same(left: ModelWeights, right: ModelWeights) -> None:
    assert torch.equal(left.embed.codes, right.embed.codes) and torch.equal(left.lm_head.codes, right.lm_head.codes)
    assert torch.equal(left.final_norm, right.final_norm) and left.nbytes == right.nbytes
    for one, other in zip(left.layers, right.layers, strict=True):
        for name in ("qkv", "o", "gate", "up", "down"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.format == b.format and a.shape == b.shape and torch.equal(a.codes, b.codes), name
        assert torch.equal(one.attention_norm, other.attention_norm) and torch.equal(one.ffn_norm, other.ffn_norm)


def change(folder: Path, **keys: object) -> None:
    """Replace keys of prosparse_quantization; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    config[KEY] = {key: value for key, value in (config[KEY] | keys).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("fmt", "head"), CHOICES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_loads_as_quantised_on_load(tmp_path, fmt, head, tied, weights):
    source = write_tiny(tmp_path / "source", tied=tied, weights=weights, **SIZES)
    plain = source if weights == "safetensors" else convert(source, tmp_path / "plain")
    made = convert(source, tmp_path / "made", fmt, lm_head=head)
    stored = json.loads((made / "config.json").read_text())[KEY]
    held = "bf16" if fmt == "auto" else fmt
    assert stored == {"version": 1, "weights": held, "lm_head": held if head == "auto" else head}
    for layout in ("rows", "bundled"):
        assert_same(load(made, layout=layout), load(plain, fmt, head, layout))
    loaded = load(made)
    assert (loaded.lm_head is loaded.embed) == tied
    assert_same(load(made, stored["weights"], stored["lm_head"]), loaded)


def test_is_what_the_documentation_says(tmp_path):
    """One packed tensor per matrix under the source's name, down with one neuron per row, norms as they were."""
    source = write_tiny(tmp_path / "source", dtype=torch.float16, **SIZES)
    tensors = load_file(convert(source, tmp_path / "made", "int8", lm_head="int4") / "model.safetensors")
    original = load_file(source / "model.safetensors")
    assert tensors.keys() == original.keys()
    up, down = (tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("up", "down"))
    assert up.dtype == down.dtype == torch.int8 and up.shape == down.shape == (300, 144)  # 128 codes, scale, padding
    assert tensors["lm_head.weight"].dtype == torch.uint8 and tensors["lm_head.weight"].shape == (128, 64)
    assert torch.equal(tensors["model.norm.weight"], original["model.norm.weight"])


def test_converted_again_is_the_same(tmp_path):
    made = convert(write_tiny(tmp_path / "source"), tmp_path / "made", "int4", lm_head="int8")
    again = convert(made, tmp_path / "again")
    assert (again / "config.json").read_bytes() == (made / "config.json").read_bytes()
    assert_same(load(again), load(made))
    with pytest.raises(UserError, match="convert: --weights is int8, but .*made holds int4, which stays as it is"):
        convert(made, tmp_path / "other", "int8")


@pytest.mark.parametrize(("fmt", "head", "option"), [("int4", "auto", "--weights"), ("auto", "fp32", "--lm-head")])
def test_another_format_is_refused(tmp_path, fmt, head, option):
    made = convert(write_tiny(tmp_path / "source"), tmp_path / "made", "int8")
    with pytest.raises(UserError, match=f"load: {option} is .*, but .*made holds int8, .*leave {option} out"):
        load(made, fmt, head)


def test_a_part_in_a_float_format_can_become_another(tmp_path):
    source = write_tiny(tmp_path / "source", dtype=torch.float32)
    made = convert(source, tmp_path / "made", "int8", lm_head="fp32")
    assert load(made).lm_head.format == "fp32"
    for fmt in FORMATS:
        assert_same(load(made, lm_head=fmt), load(source, "int8", fmt))


def test_engine_says_and_computes_the_same(tmp_path):
    source = make_model(tmp_path / "source")
    made = convert(source, tmp_path / "made", "int4", lm_head="int8")
    engine, expected = prosparse.load(made), prosparse.load(source, weights="int4", lm_head="int8")
    assert (engine.weights, engine.lm_head) == ("int4", "int8")
    assert torch.equal(engine.logits(some_tokens(20)), expected.logits(some_tokens(20)))
    result, wanted = (each.generate([1, 5, 9], max_new_tokens=6) for each in (engine, expected))
    assert result.token_ids == wanted.token_ids
    assert result.stats["bytes_per_token"] == wanted.stats["bytes_per_token"]


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"version": 2}, UnsupportedError, "prosparse_quantization has version 2, but this prosparse reads version 1"),
        ({"version": None}, UserError, "prosparse_quantization: version must be given, got no such key"),
        ({"weights": "int5"}, UserError, "prosparse_quantization: weights must be one of fp32, .*, got 'int5'"),
        ({"lm_head": 4}, UserError, "prosparse_quantization: lm_head must be a string, got 4"),
        ({"weights": "int4"}, UserError, "is int8, but prosparse_quantization in config.json makes it int4"),
        ({"lm_head": "bf16"}, UserError, "lm_head.weight is int8; only fp32, fp16, bf16 checkpoints are read"),
    ],
)
def test_what_the_config_must_say(tmp_path, keys, error, message):
    made = convert(write_tiny(tmp_path / "source"), tmp_path / "made", "int8")
    change(made, **keys)
    with pytest.raises(error, match=message):
        load(made)


@pytest.mark.parametrize("fmt", ["int8", "int4"])
@pytest.mark.parametrize("scale", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], ids=["nan", "inf", "-inf"])
def test_scales_that_are_not_finite(tmp_path, fmt, scale):
    made = convert(write_tiny(tmp_path / "source"), tmp_path / "made", fmt)
    tensors = load_file(made / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    codes = 128 if fmt == "int8" else 32  # bytes of 64 codes, the last group filled up
    tensors[name].view(torch.uint8)[-1, codes : codes + 2] = torch.frombuffer(bytearray(scale), dtype=torch.uint8)
    save_file(tensors, made / "model.safetensors")
    count = 96 if fmt == "int8" else 192
    with pytest.raises(CheckpointError, match=f"{name} has 1 of {count} scales that are NaN or infinite"):
        load(made)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("fmt", ["int8", "bf16"])
def test_memory_holds_about_one_matrix(tmp_path, fmt):
    sizes = dict(hidden=512, neurons=4096, layers=6, heads=8, kv_heads=8, head_dim=64, vocab=4096)
    source = write_tiny(tmp_path / "source", dtype=torch.float32, **sizes)
    convert(write_tiny(tmp_path / "small"), tmp_path / "first", fmt)  # loads libraries
    before = peak = anonymous_bytes()

    def watch(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    made = convert(source, tmp_path / "made", fmt, progress=watch)
    matrix = 4096 * 512 * 4
    assert peak - before < 3 * matrix, f"{(peak - before) / 1e6:.0f} MB"
    assert (made / "model.safetensors").stat().st_size > 5 * matrix  # more than was held
