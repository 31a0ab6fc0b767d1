"""The adaptive subject: what is timed is what an engine would choose."""

from __future__ import annotations

import pytest

from prosparse.bench import adaptive, check, ffn
from prosparse.bench.adaptive import compare_adaptive
from prosparse.bench.row import KEYS
from prosparse.bench.table import render
from prosparse.errors import MachineError
from prosparse.hardware import Times
from prosparse.kernels.glu_exact import glu_exact


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    monkeypatch.setattr(ffn, "BUFFER_BYTES", 2**18)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_the_kernel_follows_the_zeros_of_the_union(monkeypatch, weights):
    asked = []

    def made_up(layers, hidden, rows):
        asked.append(rows)
        return Times((0.0, 0.3), (1.0, 1.0), (1.3, 1.0))

    monkeypatch.setattr(adaptive, "measure_times", made_up)
    rows = compare_adaptive("tiny", weights, (1, 4), (0.0, 0.5, 1.0), calls=10)
    assert asked == [1, 4]
    assert [tuple(row) for row in rows] == [KEYS] * 18
    assert [row["mode"] for row in rows] == ["dense", "exact", "exact"] * 6
    chosen = [row["part"].removeprefix("chosen: ") for row in rows[1::3]]
    # half zeros of each of four tokens leave few that are zero for all of them
    assert chosen == ["dense", "exact", "exact", "dense", "dense", "exact"]
    for dense, own, always in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert dense["activation_sparsity"] == pytest.approx(own["activation_sparsity"], abs=0.1)
        # copies take turns, so what is active differs a little from call to call
        assert own["bytes"] == pytest.approx((dense if own["part"] == "chosen: dense" else always)["bytes"], rel=0.1)
        assert own["batch"] == dense["batch"] and own["dense_ratio_95"] is not None
        assert own["note"].endswith("the dense kernel is faster below 30.0% zeros")
    assert render(rows).renderables


def test_without_few_zeros_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(adaptive, "measure_times", lambda *_: pytest.fail("measured"))
    rows = compare_adaptive("tiny", "bf16", (1,), (0.9,), calls=10)
    assert [row["part"] for row in rows] == [None, "chosen: exact", "always"]
    assert rows[1]["note"] is None


def test_refuses_to_time_a_wrong_op(monkeypatch):
    monkeypatch.setitem(check.OPS, "exact", lambda *arguments: glu_exact(*arguments).mul_(1.001))
    monkeypatch.setattr(adaptive, "interleave", lambda *_: pytest.fail("a red case was timed"))
    with pytest.raises(MachineError, match="glu_exact is wrong"):
        compare_adaptive("tiny", sparsities=(0.5,), calls=1)
