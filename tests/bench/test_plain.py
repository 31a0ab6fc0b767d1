"""Decode of models without up projection, and of experts: the same harness, the same promises."""

from __future__ import annotations

import pytest
from parity.rows import ROWS
from tiny_families import write_experts, write_falcon, write_opt

from prosparse.bench import check, ffn, modes, plain_ops
from prosparse.bench.decode import compare, compare_model
from prosparse.bench.ffn import compare_ffn
from prosparse.bench.modes import Run
from prosparse.bench.ops import compare_ops
from prosparse.bench.predictors import compare_predictors
from prosparse.bench.prefill import compare_prefill, gemms
from prosparse.config.shapes import shape
from prosparse.errors import MachineError, UserError
from prosparse.kernels.plain_exact import plain_exact
from prosparse.weights.synthetic import weight_bytes

pytestmark = pytest.mark.usefixtures("small_probe")
SHORT = Run(pp=4, tg=4)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int4"])
def test_a_shape_of_opt(weights):
    dense, exact = compare("tiny-opt", 0.8, weights=weights, run=SHORT)
    assert dense["activation_sparsity"] == exact["activation_sparsity"] and 0.6 < exact["activation_sparsity"] < 0.9
    config = shape("tiny-opt")
    assert dense["bytes"] == pytest.approx(weight_bytes(config, weights), rel=0.1)
    row = (dense["bytes"] - exact["bytes"]) / (config.layers * config.neurons * exact["activation_sparsity"])
    assert row == pytest.approx(config.hidden * {"fp32": 4, "bf16": 2, "int4": 0.75}[weights], rel=0.01)
    assert exact["dense_ratio"] > 0 and dense["shape"] == "tiny-opt"


def test_predicted_beside_exact():
    rows = compare_predictors("tiny-opt", 0.9, run=Run(pp=4, tg=24))
    assert [row["mode"] for row in rows] == ["dense", "exact", *["predicted"] * 3]
    oracle = rows[-1]
    assert oracle["part"] == "oracle" and oracle["quality"]["recall"] == 1
    assert oracle["predicted_sparsity"] == pytest.approx(oracle["activation_sparsity"], abs=0.05)
    assert all(0.9 < row["quality"]["recall"] <= 1 for row in rows[2:])


def test_the_real_one_has_its_published_sizes():
    config = shape("opt-6.7b")
    matrices = weight_bytes(config, "bf16") / 2 + (config.max_position + 2) * config.hidden
    assert matrices == pytest.approx(6.66e9, rel=0.01)
    assert (config.neurons, config.vocab, config.rope.kind) == (16384, 50272, "none")


@pytest.mark.parametrize("write", [write_opt, write_falcon, write_experts], ids=lambda write: write.__name__)
def test_a_folder(write, tmp_path, monkeypatch):
    folder = next(row for row in ROWS if row.write is write).make(tmp_path / "model")
    names = ["dense"] if write is write_experts else ["dense", "exact"]
    rows = compare_model(folder, names, run=SHORT, batches=(1, 3))
    assert [(row["batch"], row["mode"]) for row in rows] == [(n, mode) for n in (1, 3) for mode in names]
    assert all(row["tokens_per_s"] > 0 and row["bytes"] > 0 and row["model"] == "model" for row in rows)
    if write is write_experts:
        with pytest.raises(UserError, match="silu makes no exact zeros, so there is no mode exact"):
            compare_model(folder, ["exact"], run=SHORT)


def test_nothing_is_timed_before_it_is_right(monkeypatch, tmp_path):
    monkeypatch.setattr(modes, "take_turns", lambda *_, **__: pytest.fail("a red case was timed"))
    monkeypatch.setitem(check.PLAIN_OPS, "exact", lambda *arguments: plain_exact(*arguments) * 1.001)
    with pytest.raises(MachineError, match="plain_exact is wrong: relative error"):
        compare("tiny-opt", 0.9, run=SHORT)
    folder = next(row for row in ROWS if row.write is write_experts).make(tmp_path / "model")
    decode = check.ExpertsFFN.decode
    monkeypatch.setattr(check.ExpertsFFN, "decode", lambda self, x, tally: decode(self, x, tally) + 0.1)
    with pytest.raises(MachineError, match="a step of experts is wrong"):
        compare_model(folder, ["dense"], run=SHORT)


@pytest.mark.parametrize("weights", ["bf16", "int4"])
def test_one_ffn_at_every_sparsity(monkeypatch, weights):
    monkeypatch.setattr(ffn, "BUFFER_BYTES", 2**18)
    rows = compare_ffn("tiny-opt", (0.0, 0.9), weights, calls=60)
    assert [row["mode"] for row in rows] == ["dense", "exact"] * 2
    for row, sparsity in zip(rows[1::2], (0.0, 0.9), strict=True):
        assert row["activation_sparsity"] == pytest.approx(sparsity, abs=0.05)
    dense, exact = rows[2:]
    assert exact["bytes"] / dense["bytes"] == pytest.approx(1 - exact["activation_sparsity"] / 2, rel=1e-3)
    monkeypatch.setitem(check.PLAIN_OPS, "exact", lambda *arguments: plain_exact(*arguments) * 1.01)
    with pytest.raises(MachineError, match="plain_exact is wrong"):
        compare_ffn("tiny-opt", (0.5,), weights, calls=1)


def test_prompts_against_the_gemms_of_two_matrices():
    config = shape("tiny-opt")
    ours, theirs = compare_prefill("tiny-opt", (24,), "fp32", rounds=10)
    attended = (
        2 * config.heads * config.head_dim * config.hidden + 2 * config.kv_heads * config.head_dim * config.hidden
    )
    weights = config.layers * (attended + 2 * config.neurons * config.hidden)
    assert theirs["bytes"] == 2 * weights and ours["bytes"] == 4 * weights
    assert gemms(config, 3)(0).shape == (3, config.hidden)


def test_its_ops_are_those_that_it_calls():
    timed = {row["subject"] for row in compare_ops("tiny-opt", "bf16", 0.8, context=32, calls=12)}
    assert timed == {"linear", "attend", "rotary_store", "add_scaled", *plain_ops.OPS}
