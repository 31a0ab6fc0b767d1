"""Every metric of the one pass, on a model whose activations are known, against values worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import HIDDEN, LAYERS, random_tables, write_hand_made
from hf_llama import load_hf

import prosparse
from prosparse.engine import load
from prosparse.study import Report

# two windows of four tokens; layer 0 opens 2, 3, 1, 1 neurons for tokens 0 to 3, layer 1 opens 0, 3, 0, 1
TOKENS = [[0, 1, 2, 3], [1, 1, 3, 0]]


@pytest.fixture(scope="module", params=["engine", "transformers"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_hand_made(tmp_path_factory.mktemp("hand") / "made")
    return load(folder, weights="fp32") if request.param == "engine" else load_hf(folder)


@pytest.fixture(scope="module")
def report(model: Any) -> Report:
    return prosparse.measure(model, TOKENS)


def test_sparsity_by_hand(report: Report) -> None:
    first, second = report.document["layers"]
    # layer 0: window 0 opens 2 3 1 1, window 1 opens 3 3 1 2: 16 of 8 * 4
    assert first["activation_sparsity"] == 1 - 16 / 32
    assert first["activation_sparsity_at"] == [1 - 5 / 8, 1 - 6 / 8, 1 - 2 / 8, 1 - 3 / 8]
    # the gate of neuron 2 is open at token 3 too, once in each window
    assert first["gate_sparsity"] == 1 - 18 / 32
    assert first["gate_sparsity_at"] == [1 - 5 / 8, 1 - 6 / 8, 1 - 3 / 8, 1 - 4 / 8]
    # below 0.01: 32 - 18 closed gates, and neuron 2 at the three tokens 1
    assert first["near_zero_share"] == (14 + 3) / 32
    # layer 1: 0 3 0 1 and 3 3 1 0
    assert second["activation_sparsity"] == 1 - 11 / 32
    assert second["gate_sparsity"] == second["activation_sparsity"] == second["near_zero_share"]
    assert report.document["mean"]["activation_sparsity"] == (16 / 32 + 21 / 32) / 2


def test_hot_and_cold_by_hand(report: Report) -> None:
    first, second = report.document["layers"]
    assert report.counts.active.tolist() == [[8, 5, 3, 0], [3, 3, 3, 2]]
    assert (first["dead"], first["always_on"]) == (1, 1)
    assert (second["dead"], second["always_on"]) == (0, 0)
    # 8 + 5 = 13 of 16 is 81 %; 3 + 3 + 3 = 9 of 11 is 82 %
    assert (first["hot_share"], second["hot_share"]) == (2 / 4, 3 / 4)
    assert first["frequency_by_rank"] == [8 / 8, 5 / 8, 3 / 8, 0]
    assert [first["cdf"][at] for at in (0, 25, 50, 75, 100)] == [0, 8 / 16, 13 / 16, 1, 1]
    assert first["cdf"][10] == pytest.approx(8 / 16 * 10 / 25, abs=1e-6)  # linear between neurons


def test_overlap_by_hand(report: Report) -> None:
    first, second = report.document["layers"]
    # window 0: {0 1} {0 1 2} {0} {0}: 2/2, 1/3, 1/1; window 1: {0 1 2} {0 1 2} {0} {0 1}: 3/3, 1/3, 1/1
    assert first["overlap"] == pytest.approx((1 + 1 / 3 + 1 + 1 + 1 / 3 + 1) / 6, abs=1e-6)
    # window 0: {} {0 1 2} {} {3}: -, 0, -; window 1: {0 1 2} {0 1 2} {3} {}: 3/3, 0, 0
    assert second["overlap"] == pytest.approx(1 / 4, abs=1e-6)
    frequency = [8 / 8, 5 / 8, 3 / 8]
    assert first["overlap_by_frequency"] == pytest.approx(sum(f * f for f in frequency) / sum(frequency), abs=1e-6)


def test_unions_by_hand(report: Report) -> None:
    first, second = report.document["layers"]
    # pairs: {0 1 2} {0}, {0 1 2} {0 1} of 4 neurons; fours: {0 1 2} twice; no window has 8 tokens
    assert first["union_sequence"] == [9 / 16, 6 / 8, None, None, None]
    # one union of the two windows at each position: {0 1 2} {0 1 2} {0} {0 1}
    assert first["union_batch"] == [9 / 16, None, None, None, None]
    # window 0 and 1: {0 1 2} {0 1 2} {3} {3}
    assert second["union_batch"] == [8 / 16, None, None, None, None]
    ratio = 1 / 2
    exponent = math.log(math.log(1 - 9 / 16) / math.log(1 - ratio)) / math.log(2)
    assert first["union_batch_exponent"] == pytest.approx(exponent, abs=1e-6)
    x = [math.log(2), math.log(4)]
    y = [math.log(math.log(1 - u) / math.log(1 - ratio)) for u in (9 / 16, 6 / 8)]
    slope = (x[0] * y[0] + x[1] * y[1]) / (x[0] ** 2 + x[1] ** 2)
    assert first["union_sequence_exponent"] == pytest.approx(slope, abs=1e-6)


def test_stability_by_hand(model: Any) -> None:
    report = prosparse.measure(model, TOKENS, second=[[2, 3], [3, 3]], window=2)
    first, second = report.document["stability"]["layers"]
    # layer 0: hot {0 1} on the first text; only neuron 0 is active on the second: 8 5 3 0 against 4 0 0 0
    assert first == {"jaccard": 0.5, "covered": 1.0, "correlation": pytest.approx(16 / math.sqrt(34 * 12), abs=1e-6)}
    # layer 1: hot {0 1 2}; only neuron 3 is active on the second
    assert (second["jaccard"], second["covered"], second["correlation"]) == (0.0, 0.0, -1.0)
    assert report.document["stability"]["mean"]["covered"] == 0.5
    assert report.document["stability"]["second_text"]["tokens"] == 4


def test_predictor_by_hand(model: Any) -> None:
    seen = []

    def first_two(layer: int, x: torch.Tensor) -> torch.Tensor:
        seen.append((layer, x.shape[-1]))
        assert torch.equal((x > 0).sum(-1), torch.ones(len(x), dtype=torch.int64))  # the normed token, one-hot
        chosen = torch.zeros(len(x), len(LAYERS[0]), dtype=torch.bool)
        chosen[:, :2] = True
        return chosen

    found = prosparse.measure(model, TOKENS, predictor=first_two).document["predictor"]
    assert found["layers"][0] == {"recall": 13 / 16, "predicted_sparsity": 0.5}
    assert found["layers"][1] == {"recall": pytest.approx(6 / 11, abs=1e-6), "predicted_sparsity": 0.5}
    assert set(seen) == {(0, HIDDEN), (1, HIDDEN)}


def test_random_tables_against_sets(tmp_path: Path) -> None:
    """Larger ones: 70 neurons do not fill their words, 36 windows do not fill their groups, 13 tokens no pairs."""
    tables = random_tables(2, 70)
    engine = load(write_hand_made(tmp_path / "made", tables), weights="fp32")
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, HIDDEN, (36, 13), generator=rng)
    document = prosparse.measure(engine, [tokens[:20], tokens[20:]]).document
    for table, found in zip(tables, document["layers"], strict=True):
        sets = [[{n for n in range(70) if table[n][token] in "#+"} for token in row] for row in tokens.tolist()]
        total = sum(len(s) for row in sets for s in row)
        assert found["activation_sparsity"] == pytest.approx(1 - total / (36 * 13 * 70), abs=1e-6)
        shares = [Fraction(len(a & b), len(a)) for row in sets for a, b in zip(row, row[1:], strict=False) if a]
        assert found["overlap"] == pytest.approx(float(sum(shares) / len(shares)), abs=1e-6)
        for i, size in enumerate((2, 4, 8)):
            unions = [len(set().union(*row[at : at + size])) for row in sets for at in range(0, 14 - size, size)]
            assert found["union_sequence"][i] == pytest.approx(sum(unions) / len(unions) / 70, abs=1e-6)
        assert found["union_sequence"][4] is None
        for i, size in enumerate((2, 4, 8, 16, 32)):
            # groups of 32 windows, and what is left over of the second
            starts = [at for at in range(0, 36, size) if at + size <= (32 if at < 32 else 36)]
            unions = [len(set().union(*(sets[at + k][p] for k in range(size)))) for at in starts for p in range(13)]
            assert found["union_batch"][i] == pytest.approx(sum(unions) / len(unions) / 70, abs=1e-6)
