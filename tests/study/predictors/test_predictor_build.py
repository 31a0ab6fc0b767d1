"""Predictors without training: perfect where the gate can be guessed, and honest where it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rows import ROWS
from safetensors.torch import load_file
from tiny_engine import decoded_logits, make_model

from prosparse.engine import Engine, load
from prosparse.errors import UnsupportedError, UserError
from prosparse.study.predictors import build
from prosparse.study.predictors.build import LEAST_GAIN, prepare
from prosparse.study.predictors.judge import judge
from prosparse.study.windows import Windows, cut, read_text
from prosparse.weights.predictor import Predictor


@pytest.fixture(scope="module")
def windows(engine: Engine, text: Path) -> Windows:
    return cut(read_text(text), engine.tokenizer, 50, 500)


def test_a_gate_of_low_rank_is_predicted_perfectly(engine: Engine, text: Path, windows: Windows) -> None:
    made = build(engine, rank=4, target_recall=1.0, weights="fp32", text=text)
    found = judge(engine, {"made": made}, windows)[0]
    assert made.kind == "low_rank" and [own.rank for own in made.layers if own is not None] == [4, 4]
    # but for gates within rounding of the threshold
    assert found.recall is not None and found.recall > 0.9995 and found.precision is not None and found.precision > 0.98
    assert found.kl_divergence.value < 1e-4
    assert found.predicted_sparsity == pytest.approx(found.activation_sparsity, abs=2e-3)
    assert found.ffn_bytes < found.exact_ffn_bytes < found.dense_ffn_bytes


def test_the_least_rank_that_is_enough_is_taken(engine: Engine, text: Path) -> None:
    made = build(engine, target_recall=0.99, weights="fp32", text=text)
    assert [own.rank for own in made.layers if own is not None] == [4, 4]  # of 16, 32: what has no energy is left out


@pytest.mark.parametrize(("kind", "least"), [("low_bit_gate", 0.99), ("sign_bits", 0.95), ("auto", 0.98)])
def test_other_kinds_reach_their_recall(engine: Engine, text: Path, windows: Windows, kind: str, least: float) -> None:
    made = build(engine, kind, target_recall=least, text=text)
    found = judge(engine, {kind: made}, windows)[0]
    kinds = {own.kind for own in made.layers if own is not None}
    assert kinds and (kinds == {kind} or kind == "auto")
    assert found.recall is not None and found.recall > least - 0.02  # this text is part of what it was calibrated on
    for own, row in zip(made.layers, made.about["layers"], strict=True):
        assert row["recall"] >= least and (own is not None) == row["used"]
        assert row["used"] == (row["bytes_of_gate"] <= 1 - LEAST_GAIN)


def test_what_cannot_pay_stays_exact(tmp_path: Path, text: Path) -> None:
    """Random gates of 64 by 96 that are open half of the time: a predictor that finds all reads more than the gate."""
    engine = load(make_model(tmp_path / "plain", max_position=64), weights="fp32")
    made = build(engine, target_recall=1.0, text=text)
    assert made.layers == (None, None) and made.kind == "none"
    assert not any(row["used"] for row in made.about["layers"])


def test_no_more_than_asked_for_beyond_what_is_active(engine: Engine, text: Path) -> None:
    prepared = prepare(engine, "sign_bits", text=text)
    loose = prepared.at_recall(0.99)
    tight = dataclasses.replace(prepared, within=0.01).at_recall(0.99)
    assert any(own is not None for own in loose.layers) and all(own is None for own in tight.layers)


def test_a_divergence_is_kept_with_as_little_as_it_takes(engine: Engine, text: Path) -> None:
    prepared = prepare(engine, "sign_bits", text=text)
    loose, tight = (prepared.at_divergence(target) for target in (0.3, 0.003))
    for made, target in ((loose, 0.3), (tight, 0.003)):
        assert made.about["target_kl"] == target and made.about["calibration_kl"] <= target
    assert loose.about["target_recall"] < tight.about["target_recall"]


def test_the_same_model_and_text_make_the_same_predictor(engine: Engine, text: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(engine, rank=4, text=text).save(tmp_path / name)
    first, second = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert first.keys() == second.keys() and len(first) == 6 and all(first[key].equal(second[key]) for key in first)
    made = Predictor.load(tmp_path / "a")
    assert made.about["text"] == "text.txt" and made.about["made_by"] == "build"


def test_decoding_agrees_with_the_judgement(guessable: Path, engine: Engine, text: Path, windows: Windows) -> None:
    """What is judged with masks over a prefill is what mode predicted does token by token."""
    made = build(engine, "sign_bits", target_recall=0.9, text=text)
    judged = judge(engine, {"made": made}, windows)[0]
    predicted = load(guessable, mode="predicted", predictor=made, weights="fp32")
    logits = [decoded_logits(predicted, row.tolist()) for row in windows.inputs]
    loss = torch.nn.functional.cross_entropy(torch.cat(logits).double(), windows.targets.flatten())
    assert judged.kl_divergence.value > 1e-4  # there is something to see
    assert float(loss.exp()) == pytest.approx(judged.perplexity, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "magic"}, "kind is 'magic'; supported are auto, low_rank"),
        ({"rank": 0}, "rank must be auto or from 1 to 64, got 0"),
        ({"kind": "sign_bits", "rank": 4}, "rank and weights are for low_rank"),
        ({"target_recall": 1.5}, "target_recall must be above 0 and at most 1"),
        ({"target_kl": -1.0}, "target_kl must be above 0"),
        ({"target_kl": 0.1, "target_recall": 0.9}, "exclude each other"),
        ({"within": 2.0}, "within must be from 0 to 1"),
        ({"weights": "int3"}, "weights is 'int3'; supported are auto, fp32"),
        ({"tokens": 1}, "tokens must be a whole number of at least 2"),
    ],
)
def test_wrong_options(engine: Engine, text: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(engine, **{"text": text, **options})


def test_wrong_texts(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(UserError, match="too short to fit a predictor|fewer than two tokens"):
        build(engine, text=tmp_path / "short.txt")


def test_models_without_zeros(tmp_path: Path) -> None:
    engine = load(make_model(tmp_path / "silu", hidden_act="silu"), mode="dense", weights="fp32")
    with pytest.raises(UnsupportedError, match="makes no exact zeros, so there is nothing to predict"):
        build(engine)


@pytest.mark.parametrize("family", ["opt-6.7b", "falcon-7b-relu"])
def test_models_without_up_projection(tmp_path: Path, family: str) -> None:
    """OPT has biases and a norm that subtracts a mean, Falcon a norm that its blocks share."""
    folder = next(row for row in ROWS if row.config == family).make(tmp_path / "plain")
    (folder / "text.txt").write_text("all happy families are alike " * 20)
    engine = load(folder, weights="fp32")
    windows = cut(read_text(folder / "text.txt"), engine.tokenizer, 20, 60)
    made = build(engine, "low_bit_gate", target_recall=0.99, text=folder / "text.txt")
    found = judge(engine, {"made": made}, windows)[0]
    assert made.kind == "low_bit_gate" and found.recall is not None and found.recall > 0.95
    assert found.kl_divergence.value < 0.01
    predicted = load(folder, mode="predicted", predictor=made, weights="fp32")
    logits = torch.cat([decoded_logits(predicted, row.tolist()) for row in windows.inputs])
    loss = torch.nn.functional.cross_entropy(logits.double(), windows.targets.flatten())
    assert float(loss.exp()) == pytest.approx(found.perplexity, rel=1e-4)
