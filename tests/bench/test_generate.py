"""Subject "generate": transformers as it is, accelerated, and the engine, over the same weights."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from prosparse.bench import generate
from prosparse.bench.generate import compare_generate
from prosparse.bench.row import KEYS
from prosparse.bench.table import render
from prosparse.errors import MachineError

pytestmark = pytest.mark.usefixtures("small_probe", "threads")


def test_three_systems_in_one_run(monkeypatch):
    kept = []
    real = generate._row
    monkeypatch.setattr(generate, "_row", lambda *arguments: kept.append(arguments[1]) or real(*arguments))
    rows = compare_generate("tiny", 0.8, "fp32", tokens=3, rounds=2)
    dense, accelerated, engine = rows
    assert [row["part"] for row in rows] == ["transformers", "accelerated", "engine"]
    assert {row["run"] for row in rows} == {dense["run"]} and all(tuple(row) == KEYS for row in rows)
    assert dense["dense_ratio"] == 1 and engine["dense_ratio"] > 0 and engine["quality"] is None
    assert 0.6 < accelerated["activation_sparsity"] < 0.95 and accelerated["note"] is None
    timings = kept[0]
    token, ffns, ours = (timings[name].median for name in ("transformers", "FFNs", "accelerated FFNs"))
    found = accelerated["quality"]
    assert found["ffn_share"] == pytest.approx(ffns / token, abs=1e-3)
    assert found["amdahl_limit"] == pytest.approx(token / (token - ffns + ours), abs=1e-3)
    reached = token / timings["accelerated"].median / found["amdahl_limit"]
    assert found["fraction_of_limit"] == pytest.approx(reached, abs=1e-2)
    out = io.StringIO()
    Console(file=out, width=200).print(render(rows))
    assert "accelerated" in out.getvalue() and "reached" in out.getvalue()


def test_other_logits_are_refused():
    class Wrong:
        def __call__(self, ids):
            return type("Out", (), {"logits": torch.ones(1, 1, 4)})

    with pytest.raises(MachineError, match="bench: accelerated gives other logits .* nothing was timed"):
        generate.check({"accelerated": Wrong()}, torch.zeros(1, 4), "bf16")
