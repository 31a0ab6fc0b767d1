"""Rows of mode predicted."""

from __future__ import annotations

import pytest

from prosparse.bench.embedded_predictors import compare_embedded
from prosparse.bench.modes import Run
from prosparse.bench.predictors import compare_predictors
from prosparse.errors import UserError


def test_rows_of_every_selector():
    rows = compare_predictors("tiny", 0.7, weights="int8", run=Run(pp=4, tg=8))
    modes = ["dense", "exact", "predicted", "predicted", "predicted"]
    assert [row["mode"] for row in rows] == modes
    assert [row["part"] for row in rows] == [None, None, "low_rank", "low_bit_gate", "oracle"]
    dense, exact, low_rank, low_bit, oracle = rows
    assert {row["subject"] for row in rows} == {"predictors"}
    assert low_rank["quality"]["recall"] >= 0.95 and low_bit["quality"]["recall"] >= 0.999
    assert oracle["quality"]["recall"] == 1.0
    assert oracle["predicted_sparsity"] == pytest.approx(exact["activation_sparsity"], abs=0.02)
    assert max(low_rank["predicted_sparsity"], low_bit["predicted_sparsity"]) <= oracle["predicted_sparsity"]
    assert oracle["bytes"] < exact["bytes"] < dense["bytes"]
    assert all(row["quality"]["exact_ratio"] > 0 for row in (low_rank, low_bit, oracle))


def test_an_unknown_selector_is_refused():
    with pytest.raises(UserError, match="selector is 'magic'; supported are low_rank, low_bit_gate, oracle"):
        compare_predictors("tiny", selectors=("magic",))


@pytest.mark.usefixtures("small_probe")
def test_rows_of_the_packaged_model():
    rows = compare_embedded(("sign_bits", "shipped"), run=Run(pp=4, tg=8), predictions=512, calibration=2048)
    assert [(row["mode"], row["part"]) for row in rows] == [
        ("dense", None), ("exact", None), ("predicted", "sign_bits"), ("predicted", "shipped"),
    ]  # fmt: skip
    assert all(row["subject"] == "predictors" and row["model"] == "relu-llama-14m" for row in rows)
    shipped = rows[-1]["quality"]
    assert shipped["recall"] > 0.97 and shipped["kl_divergence"] < 5e-3 and shipped["exact_ratio"] > 0
    assert rows[-1]["bytes"] < rows[1]["bytes"] < rows[0]["bytes"]


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="kind is 'magic'; supported are .*, shipped"):
        compare_embedded(("magic",))
