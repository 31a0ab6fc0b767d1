"""Conversion with a calibration text: what it measures and writes, and that it beats rounding to nearest."""

from __future__ import annotations

import gc
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_llama import load_hf
from parity.rows import ROWS
from tiny_engine import make_model, some_tokens
from tiny_model import write_tiny, write_weights
from watched_memory import anonymous_bytes

import prosparse
from prosparse.cli import main
from prosparse.config import ModelConfig
from prosparse.engine import load
from prosparse.errors import MachineError, UnsupportedError, UserError
from prosparse.kernels.weight import FORMATS
from prosparse.study.calibrate import convert_calibrated
from prosparse.study.calibrate.walk import Walk
from prosparse.study.compare import kl_divergence
from prosparse.study.windows import cut, read_text
from prosparse.weights import Checkpoint, convert
from prosparse.weights.formats import KEY

TRAINED = Path(__file__).parents[1] / "assets" / "relu-llama-1.5m"
CONVERT = importlib.import_module("prosparse.weights.convert")  # the package's name for it is the function
FEW = 1024  # tokens
KINDS = (
    "MiniCPM-S-1B sft",
    "Bamboo-7B base, DPO",
    "MiniCPM-1B sft",
    "OPT-125M to 66B",
    "OPT-350M",
    "Falcon-7B with ReLU",
    "Falcon-40B, 180B with ReLU",
)


def convert_few(source: Path, target: Path, weights: str = "int4", lm_head: str = "auto", **options: Any) -> Path:
    return convert_calibrated(source, target, weights, lm_head, tokens=FEW, **options)


def rounding_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())[KEY].get("rounding")


@pytest.mark.parametrize("family", ["llama", "sparsellama"])
def test_moments_are_those_of_transformers(tmp_path, family):
    folder = make_model(tmp_path / "model", family=family, layers=3)
    windows = torch.tensor([some_tokens(40, seed) for seed in range(3)])
    model, expected = load_hf(folder), {}
    watched = {"q_proj": "qkv", "o_proj": "o", "up_proj": "gate_up", "down_proj": "down", "lm_head": "lm_head"}
    for name, module in model.named_modules():
        if name.split(".")[-1] in watched:
            layer = int(name.split(".")[2]) if "layers" in name else 3
            key = layer, watched[name.split(".")[-1]]

            def look(module, given, key=key):
                x = given[0].flatten(0, 1).double()
                expected[key] = x.T @ x

            module.register_forward_pre_hook(look)
    with torch.inference_mode():
        model(windows, use_cache=False)
    walk = Walk(Checkpoint(folder), ModelConfig.from_hf(folder), windows)
    for layer in range(3):
        assert walk.passed == layer
        sums = walk.advance(watch=layer != 1).sums
        assert (sums == {}) == (layer == 1)
        for name, found in sums.items():
            wanted = expected[layer, name]
            assert float((found - wanted).norm() / wanted.norm()) < 1e-5, (layer, name)
    head = walk.finish().sums["lm_head"]
    assert float((head - expected[3, "lm_head"]).norm() / expected[3, "lm_head"].norm()) < 1e-5


@pytest.mark.parametrize(("fmt", "head"), [("int4", "auto"), ("int4", "int8"), ("int8", "auto"), ("bf16", "int4")])
@pytest.mark.parametrize("tied", [True, False])
def test_is_a_converted_folder_like_any_other(tmp_path, fmt, head, tied):
    source = make_model(tmp_path / "source", tied=tied)
    made = convert_few(source, tmp_path / "made", fmt, head)
    plain = convert(source, tmp_path / "plain", fmt, lm_head=head)
    with Checkpoint(made) as ours, Checkpoint(plain) as theirs:
        assert sorted(ours.names()) == sorted(theirs.names())
        for name in ours.names():
            packed = not ours.dtype(name).is_floating_point
            assert ours.dtype(name) == theirs.dtype(name) and ours.shape(name) == theirs.shape(name)
            to_nearest = torch.equal(ours.read(name), theirs.read(name))
            assert to_nearest != (packed and (tied or "embed" not in name)), name
    found = rounding_of(made)
    assert found.pop("digest") and found == {
        "method": "error feedback", "calibration": "calibration.txt.xz", "tokens": FEW, "damping": 0.01,
    }  # fmt: skip
    assert (rounding_of(plain), sorted(os.listdir(made))) == (None, sorted(os.listdir(plain)))
    engine = load(made)
    assert (engine.weights, engine.lm_head) == (fmt, fmt if head == "auto" else head)
    assert len(engine.generate("and", max_new_tokens=4).token_ids) == 4
    again = convert(made, tmp_path / "again")
    assert (again / "config.json").read_bytes() == (made / "config.json").read_bytes()


@pytest.mark.parametrize("row", [row for row in ROWS if row.model in KINDS], ids=lambda row: row.model)
def test_every_kind_of_model_is_calibrated(tmp_path, row):
    source = row.make(tmp_path / "source")
    made, plain = convert_few(source, tmp_path / "made"), convert(source, tmp_path / "plain", "int4")
    engine = load(source, weights="fp32")
    tokens = engine.tokenizer.encode(read_text(None)[0][:400])
    wanted = engine.logits(tokens)
    errors = [float((load(folder).logits(tokens) - wanted).norm() / wanted.norm()) for folder in (made, plain)]
    assert errors[0] < errors[1]


def test_experts_are_refused(tmp_path):
    source = next(row for row in ROWS if "MoE" in row.model).make(tmp_path / "source")
    with pytest.raises(UnsupportedError, match="convert: ExpertsFFN cannot be calibrated; leave --calibrate out"):
        convert_few(source, tmp_path / "made")
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_trained_model_loses_less(tmp_path):
    made = convert_calibrated(TRAINED, tmp_path / "made", tokens=4096)
    plain = convert(TRAINED, tmp_path / "plain", "int4")
    original, *rounded = (load(folder) for folder in (TRAINED, made, plain))
    windows = cut(read_text(None), original.tokenizer, 256, 1024).inputs
    baseline = torch.cat([original.logits(window) for window in windows])
    ours, theirs = (torch.cat([engine.logits(window) for window in windows]) for engine in rounded)
    assert float(kl_divergence(baseline, ours).mean()) < 0.75 * float(kl_divergence(baseline, theirs).mean())
    right = [(logits.argmax(1) == baseline.argmax(1)).double().mean() for logits in (ours, theirs)]
    assert right[0] > right[1]


def test_pickled_weights_and_a_text_of_ones_own(tmp_path):
    source = make_model(tmp_path / "source", weights="bin")
    text = tmp_path / "own.txt"
    text.write_text("What is read here decides how weights are rounded. " * 40)
    made = convert_few(source, tmp_path / "made", text=text)
    assert rounding_of(made)["calibration"] == "own.txt"
    other = convert_few(source, tmp_path / "other")
    assert (made / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONVERT, "SHARD_BYTES", 20_000)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt_at(target: Path, shards: int):
    def progress(done: int, total: int) -> None:
        if len(list(target.parent.glob(f".{target.name}.converting/*.safetensors"))) == shards:
            raise KeyboardInterrupt

    return progress


def test_goes_on_in_the_middle_of_the_walk(tmp_path, small_shards):
    source = make_model(tmp_path / "source", layers=4)
    expected = bytes_of(convert_few(source, tmp_path / "expected"))
    target = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt):
        convert_few(source, target, progress=interrupt_at(target, 2))
    work = tmp_path / ".made.converting"
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    assert len(before) == 2 and not target.exists()
    assert bytes_of(convert_few(source, target)) == expected
    assert {name: (target / name).stat().st_mtime_ns for name in before} == before  # not written again


@pytest.mark.parametrize("then", ["another text", "no text"])
def test_shards_rounded_otherwise_are_not_used(tmp_path, small_shards, then):
    source, target = make_model(tmp_path / "source"), tmp_path / "made"
    with pytest.raises(KeyboardInterrupt):
        convert_few(source, target, progress=interrupt_at(target, 2))
    if then == "no text":
        assert bytes_of(convert(source, target, "int4")) == bytes_of(convert(source, tmp_path / "other", "int4"))
        return
    text = tmp_path / "own.txt"
    text.write_text("Nothing of what was read before. " * 60)
    assert bytes_of(convert_few(source, target, text=text)) == bytes_of(convert_few(source, tmp_path / "b", text=text))


def test_what_is_refused(tmp_path):
    source = make_model(tmp_path / "source")
    short, wrong = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("Too little to know anything by.\n" * 20)
    wrong.write_bytes(b"\xff" * 5000)
    for options, message in [
        (
            {"text": short},
            "convert: the calibration text short.txt has 512 tokens in whole windows of 512; at least 1024",
        ),
        ({"text": wrong}, "latin.txt: not UTF-8 text"),
        ({"text": tmp_path / "none.txt"}, "none.txt: no such|none.txt: cannot read the text"),
        ({"weights": "bf16"}, "convert: --calibrate is for int8 and int4, but --weights is bf16 and --lm-head bf16"),
        ({"weights": "auto"}, "--weights is auto and --lm-head auto; add --weights int4"),
        ({"weights": "int3"}, "convert: weights is 'int3'; supported are auto"),
    ]:
        with pytest.raises(UserError, match=message):
            convert_few(source, tmp_path / "made", **options)
    with pytest.raises(UserError, match="calibration tokens must be a whole number of at least 1024, got 1023"):
        convert_calibrated(source, tmp_path / "made", tokens=1023)
    with pytest.raises(
        UserError, match=".*packed is rounded already; give --calibrate the model it was converted from"
    ):
        convert_few(convert(source, tmp_path / "packed", "int8"), tmp_path / "made", "int8")
    with pytest.raises(UserError, match="bare: no tokenizer; looked for"):
        convert_few(write_tiny(tmp_path / "bare"), tmp_path / "made")
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))


def test_activations_that_are_not_finite_are_told(tmp_path):
    huge = make_model(tmp_path / "source", dtype=torch.float32)
    tensors = {name: Checkpoint(huge).read(name).clone() for name in Checkpoint(huge).names()}
    tensors["model.layers.1.self_attn.v_proj.weight"] *= 1e38
    write_weights(huge, tensors)
    with pytest.raises(
        MachineError, match=r"what model.layers.1.self_attn.o_proj.weight is multiplied with is not fini"
    ):
        convert_few(huge, tmp_path / "made")


def test_memory_does_not_grow_with_the_layers(tmp_path):
    """Of eight more layers, fewer than four may be held: pages that the process keeps from before blur the rest."""
    sizes: dict[str, Any] = dict(hidden=256, neurons=768, heads=4, kv_heads=4, head_dim=64)
    peaks = {}
    for layers in (1, 9):
        source = make_model(tmp_path / f"source{layers}", layers=layers, **sizes)
        gc.collect()
        before = peak = anonymous_bytes()

        def watch(done: int, total: int) -> None:
            nonlocal peak
            peak = max(peak, anonymous_bytes())

        convert_few(source, tmp_path / f"made{layers}", progress=watch)
        peaks[layers] = peak - before
    layer = 4 * (4 * 256 * 256 + 3 * 256 * 768)
    assert peaks[9] < peaks[1] + 4 * layer, {layers: f"{peak / 1e6:.0f} MB" for layers, peak in peaks.items()}


def test_from_the_command_line(tmp_path, capsys):
    folder = str(tmp_path / "made")
    arguments = ["convert", str(TRAINED), "-o", folder, "--weights", "int4", "--lm-head", "int8"]
    assert main([*arguments, "--calibration-tokens", "1024"]) == 2
    assert "--calibration-tokens says how much of a text to use; add --calibrate" in capsys.readouterr().err
    assert main([*arguments, "--calibrate", "--calibration-tokens", "1024"]) == 0
    assert capsys.readouterr().err.endswith(f"prosparse: wrote {folder}\n")
    assert rounding_of(tmp_path / "made")["tokens"] == 1024
    assert prosparse.load(folder).lm_head == "int8" in FORMATS
