"""The ops subject: every op of the kernels is there, is checked before it is timed, and counts its bytes."""

from __future__ import annotations

import importlib
import math

import pytest
from conftest import REFERENCES

from prosparse.bench import check, ffn_ops, op_cases, ops, plain_ops, predicted_ops
from prosparse.bench.cases import CASES
from prosparse.bench.cold import copies_of, distance, in_turn
from prosparse.bench.ops import compare_ops
from prosparse.bench.probe import BUFFER_BYTES, CALL_BYTES
from prosparse.bench.row import KEYS
from prosparse.config.shapes import shape
from prosparse.errors import MachineError, UserError

pytestmark = pytest.mark.usefixtures("small_probe")
AT_LOAD = {"quantize", "dequantize"}  # not of a decode step
SHORT = {"context": 32, "calls": 12}


@pytest.fixture(scope="module")
def rows(small_probe):
    return compare_ops("tiny", "bf16", 0.8, **SHORT)


def row_of(rows, subject, mode, part=None):
    return next(row for row in rows if (row["subject"], row["mode"], row["part"]) == (subject, mode, part))


def test_every_op_is_timed(rows):
    timed = {row["subject"] for row in rows}
    missing = set(REFERENCES) - AT_LOAD - timed
    assert not missing, f"{missing}: add what they are called with in bench/op_cases.py or ffn_ops.py, and to GROUPS"
    assert all(tuple(row) == KEYS and row["p10_us"] > 0 and row["run"] for row in rows)
    assert {case.split("-")[0] for case in CASES} >= {"decode", "ffn", "ops", "prefill", "batch", "quality", "engines"}


def test_bytes_and_sparsity_by_hand(rows):
    config = shape("tiny")
    matrix = 2 * config.neurons * config.hidden  # bytes
    assert row_of(rows, "linear", "dense", "gate")["bytes"] == matrix
    assert row_of(rows, "linear", "pytorch", "lm_head")["bytes"] == 2 * config.vocab * config.hidden
    assert row_of(rows, "glu_dense", "dense")["bytes"] == 3 * matrix
    exact, active = row_of(rows, "glu_exact", "exact"), row_of(rows, "glu_active", "exact")
    open_share = 1 - exact["activation_sparsity"]
    assert 0.1 < open_share < 0.3
    assert exact["bytes"] == pytest.approx(matrix * (1 + 2 * open_share), rel=1e-3)
    assert row_of(rows, "gate_select", "exact")["bytes"] == matrix
    named = row_of(rows, "glu_predicted", "predicted")  # exactly the active ones
    assert named["bytes"] == pytest.approx(3 * matrix * (1 - named["activation_sparsity"]), rel=1e-3)
    assert row_of(rows, "sign_select", "predicted")["bytes"] == config.neurons * (config.hidden // 8 + 4)
    first_half = row_of(rows, "linear_active", "predicted")
    assert first_half["bytes"] == pytest.approx(matrix * (1 - first_half["activation_sparsity"]), rel=1e-3)
    second_half = row_of(rows, "axpy_active", "exact")
    assert second_half["bytes"] == pytest.approx(matrix * (1 - second_half["activation_sparsity"]), rel=1e-3)
    plain = row_of(rows, "plain_exact", "exact")
    assert plain["bytes"] == pytest.approx(matrix * (2 - plain["activation_sparsity"]), rel=1e-3)
    assert active["bytes"] == pytest.approx(2 * matrix * (1 - active["activation_sparsity"]), rel=1e-3)
    dense, exact = (row_of(rows, "decode_layers", mode) for mode in ("dense", "exact"))
    assert dense["layers"] == config.layers and dense["activation_sparsity"] == exact["activation_sparsity"]
    skipped = 2 * config.layers * matrix * exact["activation_sparsity"]
    assert dense["bytes"] - exact["bytes"] == pytest.approx(skipped, rel=1e-3)


def test_every_row_says_what_it_is_compared_with(rows):
    tiny = shape("tiny")
    for row in rows:
        # all are cold, but for layers so few and small that they fit the (small) buffer of the probe
        assert (row["fraction_of_floor"] is None) == (
            row["subject"] == "decode_layers" and row["layers"] == tiny.layers
        )
        beside_pytorch = row["subject"] in ("linear", "attend", "rms_norm", "rms_norm_to", "glu_values", "add_scaled")
        if beside_pytorch:
            assert row["baseline"] == op_cases.PYTORCH
        elif row["subject"] in ("glu_exact", "glu_dense", "plain_exact", "plain_dense", "decode_layers"):
            assert "same weights in the same run" in row["baseline"]
        else:
            assert row["baseline"] is None and row["dense_ratio"] is None


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "int4"])
def test_every_format(weights):
    rows = compare_ops("tiny", weights, 0.8, **SHORT)
    assert ("pytorch" in {row["mode"] for row in rows if row["subject"] == "linear"}) == (weights in ("fp32", "fp16"))
    assert {row["weights"] for row in rows if row["subject"] == "glu_exact"} == {weights}


WRONG = [
    (op_cases, "linear"),
    (op_cases, "attend"),
    (op_cases, "rms_norm"),
    (op_cases, "rotary_store"),
    (ffn_ops, "glu_active"),
    (predicted_ops, "glu_predicted"),
    (plain_ops, "plain_exact"),
    (plain_ops, "linear_active"),
    (plain_ops, "axpy_active"),
]


@pytest.mark.parametrize(("module", "name"), WRONG, ids=[name for _, name in WRONG])
def test_refuses_to_time_a_wrong_op(monkeypatch, module, name):
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: real(*arguments) * 1.01)
    with pytest.raises(MachineError, match=f"{name}.* is wrong: relative error .*; nothing was timed"):
        compare_ops("tiny", "bf16", 0.8, **SHORT)


def test_refuses_a_list_that_misses_a_neuron(monkeypatch):
    real = ffn_ops.gate_select

    def forgets(x, gate, activation):
        found = real(x, gate, activation)
        return type(found)(found.index, found.count - 1, found.value)

    monkeypatch.setattr(ffn_ops, "gate_select", forgets)
    with pytest.raises(MachineError, match="gate_select is wrong"):
        ops.time_group(ffn_ops.ffn(shape("tiny"), "bf16", 0.5, 32), 1, lambda number: None)


def test_refuses_what_it_cannot_set_up():
    for arguments, message in [
        ({"sparsity": 1.1}, "from 0 to 1"),
        ({"context": 1}, "from 2 to 256"),
        ({"shape": "bamboo-7b"}, "dReLU"),
        ({"shape": "none"}, "not known"),
    ]:
        with pytest.raises(UserError, match=message):
            compare_ops(**{"shape": "tiny", **arguments})


def test_copies_are_more_than_a_cache_holds(monkeypatch):
    monkeypatch.setattr(importlib.import_module("prosparse.bench.probe"), "BUFFER_BYTES", BUFFER_BYTES)
    for nbytes in (100, 10**6, 35 * 10**6, 3 * BUFFER_BYTES):
        copies = copies_of(nbytes)
        assert copies >= 2 and distance(copies, nbytes) >= BUFFER_BYTES
        assert copies * nbytes < BUFFER_BYTES + CALL_BYTES + 2 * nbytes
    assert copies_of(100) == math.ceil(BUFFER_BYTES / (100 + CALL_BYTES)) + 1
    seen = []
    turn = in_turn("abcd", lambda copy, number: seen.append((copy, number)), 0.5)
    for number in range(3):
        turn(number)
    assert seen == [("c", 0), ("d", 1), ("a", 2)]
    assert check.OPS.keys() == {"dense", "exact"}
