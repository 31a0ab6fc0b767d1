"""Mode predicted for OPT and Falcon, whose FFNs have no up projection."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.rows import ROWS, Row
from predictors import predictor_of
from tiny_engine import decoded_logits, some_tokens
from tiny_families import write_experts, write_falcon, write_opt

import prosparse
from prosparse.errors import UserError
from prosparse.weights.predictor import KINDS

PLAIN = [row for row in ROWS if row.write in (write_opt, write_falcon)]
IDS = some_tokens(24)


@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.model)
def test_one_that_names_all_gives_the_bits_of_exact(row: Row, weights: str, tmp_path: Path) -> None:
    folder = row.make(tmp_path / "model")
    exact = prosparse.load(folder, mode="exact", weights=weights)
    for kind in KINDS:
        predicted = prosparse.load(folder, weights=weights, predictor=predictor_of(exact, kind))
        assert predicted.plan.mode == "predicted"
        assert torch.equal(decoded_logits(predicted, IDS), decoded_logits(exact, IDS)), kind


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.model)
def test_one_that_names_some_reads_less_and_says_how_many_it_found(row: Row, tmp_path: Path) -> None:
    folder = row.make(tmp_path / "model")
    exact = prosparse.load(folder, mode="exact")
    engine = prosparse.load(folder, predictor=predictor_of(exact, "low_bit_gate", 0.0), audit=1)
    stats, full = (each.generate("abc", max_new_tokens=10).stats for each in (engine, exact))
    assert 0.2 < stats["predicted_sparsity"]["mean"] < 0.8
    assert 0.5 < stats["audit"]["recall"]["mean"] <= 1
    assert not torch.equal(decoded_logits(engine, IDS), decoded_logits(exact, IDS))
    every = prosparse.load(folder, predictor=predictor_of(exact, "low_bit_gate"))
    ffn = every.decoder.blocks[0][1]
    own = engine.config.layers * ffn.selector.nbytes  # type: ignore[attr-defined]
    assert every.generate("abc", max_new_tokens=10).stats["bytes_per_token"] - full["bytes_per_token"] == own
    assert stats["bytes_per_token"] < full["bytes_per_token"] + own


def test_experts_are_not_predicted(tmp_path: Path) -> None:
    folder = next(row for row in ROWS if row.write is write_experts).make(tmp_path / "model")
    with pytest.raises(UserError, match="mode predicted needs an activation that makes exact zeros"):
        prosparse.load(folder, mode="predicted")
