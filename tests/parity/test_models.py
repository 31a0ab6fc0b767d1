"""The table of docs/models.md: logits against float64, in every mode that a row names, within the figure it gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parity.rows import ROWS, Row
from predictors import predictor_of
from tiny_engine import assert_logits_close, decoded_logits, some_tokens

import prosparse
from prosparse.config import ModelConfig
from prosparse.engine import Engine
from prosparse.errors import UserError
from prosparse.placement import choose
from prosparse.plan import MODES
from prosparse.weights.predictor import LayerPredictor, Predictor

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "models.md"


def table() -> dict[str, dict[str, str]]:
    """{model: {column: cell}} of the rows that name this file as their test."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [dict(zip(head, row, strict=True)) for row in rows]
    return {row["model"]: row for row in found if row["test"] == "`test_models`"}


def modes_of(row: Row) -> list[str]:
    """What a plan can be made of for a model, given a predictor."""
    config, possible = ModelConfig.from_hf(row.published()), []
    every = LayerPredictor("sign_bits", torch.full((config.neurons,), torch.inf))
    predictor = Predictor((every,) * config.layers, "", "")
    for mode in MODES:
        try:
            choose(config, mode, predictor if mode == "predicted" else None)
        except UserError:
            continue
        possible.append(mode)
    return possible


def engines(row: Row, folder: Path) -> Iterator[tuple[str, Engine]]:
    """The model in each of its modes; the predictor names every neuron."""
    modes = modes_of(row)
    for mode in modes:
        predictor = predictor_of(prosparse.load(folder, weights="fp32")) if mode == "predicted" else None
        yield mode, prosparse.load(folder, mode=mode, weights="fp32", predictor=predictor)


def test_the_table_lists_what_is_tested() -> None:
    assert list(table()) == [row.model for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model)
def test_logits_are_those_of_float64(row: Row, tmp_path: Path) -> None:
    told = table()[row.model]
    assert sorted(told["modes"].split(", ")) == modes_of(row)
    assert re.fullmatch(r"[1-9]e-[67]", told["parity"])
    folder, ids = row.make(tmp_path / "model"), some_tokens(40, seed=7)
    expected, decoded, worst = row.expected(folder, ids), [], 0.0
    for mode, engine in engines(row, folder):
        decoded.append(decoded_logits(engine, ids))
        for what, logits in (("prefill", engine.logits(ids)), ("decode", decoded[-1])):
            worst = max(worst, assert_logits_close(logits, expected, f"{row.model}, {mode}, {what}"))
    assert worst <= float(told["parity"]), f"{row.model}: off by {worst:.1e}, docs/models.md says {told['parity']}"
    assert all(torch.equal(each, decoded[0]) for each in decoded), "modes differ"
