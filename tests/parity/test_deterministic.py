"""`deterministic=True`: a prompt's bits do not depend on threads, nor on where its steps begin and end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.rows import ROWS, Row
from predictors import predictor_of
from tiny_engine import decoded_logits, make_model, some_tokens

import prosparse
from prosparse.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="needs the C++ kernels")


@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model)
def test_a_prompt_has_the_bits_of_steps_with_any_number_of_threads(
    row: Row, weights: str, tmp_path: Path, threads: None
) -> None:
    folder = row.make(tmp_path / "model")
    logits = []
    for count in (1, 2, 3):
        engine = prosparse.load(folder, weights=weights, threads=count, deterministic=True)
        ids = some_tokens(37, vocab=engine.config.vocab)
        logits.append(engine.logits(ids))
    logits += [engine.logits(ids, chunk=chunk) for chunk in (1, 5)] + [decoded_logits(engine, ids)]
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_a_predicted_prompt_is_dense(tmp_path: Path) -> None:
    folder, ids = make_model(tmp_path / "model"), some_tokens(40)
    exact = prosparse.load(folder, deterministic=True)
    nothing = predictor_of(exact, offset=-torch.inf)
    predicted = prosparse.load(folder, "predicted", predictor=nothing, deterministic=True)
    assert torch.equal(predicted.logits(ids), exact.logits(ids))
    assert not torch.equal(decoded_logits(predicted, ids), decoded_logits(exact, ids))


def test_texts_are_the_same_text(tmp_path: Path) -> None:
    folder, ids = make_model(tmp_path / "model"), some_tokens(60)
    texts = [
        prosparse.load(folder, mode, deterministic=True).generate(ids, max_new_tokens=24).token_ids
        for mode in ("dense", "exact")
    ]
    assert texts[0] == texts[1]
