"""Simulated rows: complete, marked as what they are, shown, and never compared as if they had been timed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from rich.console import Console

from prosparse.bench import hybrid
from prosparse.bench.compare import compare_rows
from prosparse.bench.row import KEYS
from prosparse.bench.table import render
from prosparse.weights.neuron_profile import Profile

ROOT = Path(__file__).parents[2]
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


def test_the_tables_of_the_page_are_the_rows():
    kept = ROOT / "bench" / "results" / "simulated-hybrid.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    page = (ROOT / "docs" / "hybrid.md").read_text()
    tables = tables_of(rows)
    assert len(tables) == 3
    for table in tables:
        assert table in page, f"docs/hybrid.md lacks what bench/results/simulated-hybrid.jsonl says:\n{table}"
    assert min(row["dense_ratio"] for row in rows) >= 1


def tables_of(rows):
    """Of each shape that does not fit, as docs/hybrid.md has it."""
    keys = ("shape", "weights", "mode")
    by = {(*(row[key] for key in keys), row["device"].split()[1], row["part"].split()[0]): row for row in rows}
    presets = list(dict.fromkeys(key[3] for key in by))
    tables = []
    for name, weights in ((SEVEN, "bf16"), ("prosparse-llama-2-13b", "bf16"), ("relullama-70b", "int4")):
        lines = []
        for mode in ("exact", "predicted"):
            for preset in presets:
                cells = []
                for curve in ("synthetic", "embedded"):
                    row = by[name, weights, mode, preset, curve]
                    split = row["simulated"]["layer_split_tokens_per_s"]
                    cells += [f"{row['tokens_per_s']:.1f}", f"{split:.1f}", f"{row['dense_ratio']:.2f}"]
                lines.append(f"| {mode} | {preset} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return tables
