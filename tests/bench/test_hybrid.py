"""Simulated rows: complete, marked as what they are, shown, and never compared as if they had been timed."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from prosparse.bench import hybrid
from prosparse.bench.compare import compare_rows
from prosparse.bench.row import KEYS
from prosparse.bench.table import render
from prosparse.weights.neuron_profile import Profile

SEVEN = "prosparse-llama-2-7b"


def test_rows_say_that_they_are_simulated():
    rows = hybrid.compare_hybrid(SEVEN, 0.89, ["8gb-pcie4", "24gb-pcie4"], ["exact"], curves=["synthetic"], tokens=1)
    assert [row["device"] for row in rows] == ["simulated 8gb-pcie4", "simulated 24gb-pcie4"]
    for row in rows:
        assert tuple(row) == KEYS and "not a measurement" in row["note"] and row["p10_us"] is None
        assert "RTX" in row["simulated"]["machine"] and "synthetic" in row["simulated"]["frequencies"]
        assert row["tokens_per_s"] < row["simulated"]["bound_tokens_per_s"]
    assert rows[0]["dense_ratio"] > 2 and rows[1]["dense_ratio"] == 1
    shown = io.StringIO()
    Console(file=shown, width=100).print(render(rows))
    assert "simulated" in shown.getvalue() and "2." in shown.getvalue() and "busy" not in shown.getvalue()
    assert compare_rows(rows, rows) == []


def test_curves_of_the_packaged_model_are_stretched(monkeypatch):
    profile = Profile(torch.tensor([[80, 10, 0], [40, 20, 10]]), 100, "", "", "by hand")
    monkeypatch.setattr(hybrid, "_embedded", lambda: profile)
    (row,) = hybrid.compare_hybrid(SEVEN, 0.89, ["8gb-pcie3"], ["predicted"], curves=["embedded"], tokens=1)
    assert row["part"] == "embedded curves" and row["simulated"]["frequencies"].startswith(
        "stretched from those of by hand"
    )
    assert row["activation_sparsity"] == 0.89
