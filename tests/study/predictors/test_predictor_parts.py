"""The parts of making a predictor, with numbers that can be had by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prosparse.errors import UserError
from prosparse.kernels.weight import in_format
from prosparse.sparsity.selectors import Selector
from prosparse.study.predictors.curve import ALWAYS, LIMIT, Curve
from prosparse.study.predictors.guess import Guess, Line
from prosparse.study.predictors.low_rank import Moments, guesses, parts, ranks_to_try
from prosparse.study.predictors.yardsticks import at_random, hottest, oracle, previous
from prosparse.weights.predictor import LayerPredictor


def test_a_curve_counts_what_each_margin_finds() -> None:
    curve = Curve()
    needed = torch.tensor([[-1.0, 0.5, 2.0, 3.0], [1.0, 9.0, 40.0, math.nan]])
    active = torch.tensor([[True, True, False, True], [False, True, False, False]])
    curve.add(needed, active, torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 0.0, 0.0]]))
    assert [curve.margin(share) for share in (0.2, 0.5, 0.75, 1.0)] == [-1.0, 0.5, 3.0, 9.0]
    assert [curve.recall(m) for m in (-2.0, -1.0, 0.5, 2.99, 3.0, ALWAYS)] == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]
    assert curve.predicted(0.5) == 3 / 8  # NaN is predicted by every margin
    assert curve.predicted(ALWAYS) == 1.0 and curve.predicted(LIMIT) == 7 / 8
    assert curve.missed_mass(0.5) == pytest.approx(0.7)
    assert curve.active_share() == 0.5


def test_an_active_neuron_out_of_reach_needs_an_infinite_margin() -> None:
    curve = Curve()
    curve.add(torch.tensor([[0.0, 1e9]]), torch.tensor([[True, True]]), torch.ones(1, 2))
    assert curve.margin(0.5) == 0.0 and curve.margin(0.51) == ALWAYS


def test_nothing_active_needs_no_margin_and_misses_nothing() -> None:
    curve = Curve()
    curve.add(torch.tensor([[-3.0, 3.0]]), torch.tensor([[False, False]]), torch.zeros(1, 2))
    assert curve.margin(0.99) == 0.0 and curve.recall(0.0) == 1.0 and curve.missed_mass(0.0) == 0.0


def test_a_line_is_that_of_least_squares() -> None:
    rng = torch.Generator().manual_seed(0)
    score = torch.randn(4000, 2, generator=rng)
    gate = torch.stack([3 * score[:, 0] + 1, 0.5 * score[:, 1] - 2 + 0.1 * torch.randn(4000, generator=rng)], 1)
    line = Line()
    for part in (slice(0, 1000), slice(1000, 4000)):
        line.add(score[part], gate[part])
    base, unit = line.base_and_unit(threshold=0.25)
    # active where slope * score + intercept > threshold, so score + (intercept - threshold) / slope > 0
    assert base.tolist() == pytest.approx([(1 - 0.25) / 3, (-2 - 0.25) / 0.5], rel=2e-2)
    assert unit[0] < 1e-4 and float(unit[1]) == pytest.approx(0.1 / 0.5, rel=5e-2)


def test_a_score_that_says_nothing_gives_a_constant() -> None:
    line = Line()
    gate = torch.tensor([[5.0, -5.0]]).repeat(64, 1) + torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    line.add(torch.full((64, 2), 7.0), gate)
    base, _ = line.base_and_unit(0.0)
    assert ((7.0 + base) > 0).tolist() == [True, False]


def test_a_gate_of_low_rank_is_found_whole() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 3, generator=rng), torch.randn(3, 24, generator=rng)
    x = torch.randn(500, 24, generator=rng) * torch.linspace(0.1, 3, 24)
    moments = Moments()
    moments.add(x[:200])
    moments.add(x[200:])
    first, second = parts(in_format(left @ right, "fp32"), moments, 8)
    assert first.shape == (3, 24) and second.shape == (40, 3)  # what has no energy is left out
    assert torch.allclose(second @ first, left @ right, atol=1e-3)


def test_the_data_say_which_directions_matter() -> None:
    """A gate of rank 2 over inputs that hardly move along the stronger direction: rank 1 takes the weaker one."""
    gate = torch.zeros(6, 4)
    gate[:3, 0], gate[3:, 1] = 10.0, 1.0
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1.0, 1.0, 1.0])
    moments = Moments()
    moments.add(x)
    first, second = parts(in_format(gate, "fp32"), moments, 1)
    guess = second @ first
    assert torch.allclose(guess[3:, 1], torch.ones(3), atol=1e-2) and float(guess[:3, 0].abs().max()) < 0.5


def test_what_needs_just_the_margin_is_predicted() -> None:
    rng = torch.Generator().manual_seed(0)
    gate = in_format(torch.randn(50, 16, generator=rng), "fp32")
    own = next(guesses(torch.randn(4, 16, generator=rng), torch.randn(50, 4, generator=rng), [4], "fp32"))
    guess = Guess.of(own, gate)
    guess.base, guess.unit = torch.randn(50, generator=rng), torch.rand(50, generator=rng) + 0.1
    x = torch.randn(9, 16, generator=rng)
    needed = guess.needed(x, x)
    margin = float(needed[4, 7])
    named = ~(Selector(guess.at(margin), gate).scores(x, x) < 0)
    assert bool(named[4, 7]) and bool((named == (needed <= margin + 1e-4))[(needed - margin).abs() > 1e-3].all())
    assert bool((~(Selector(guess.at(ALWAYS), gate).scores(x, x) < 0)).all())


def test_ranks() -> None:
    assert ranks_to_try(5, 16, 50) == (5,)
    assert ranks_to_try("auto", 384, 1536) == (16, 32, 64, 96, 128, 192, 256)
    assert ranks_to_try("auto", 4, 4) == (2,)
    for wrong in (0, 17, "all", True, 2.5):
        with pytest.raises(UserError, match="rank must be auto or from 1 to 16"):
            ranks_to_try(wrong, 16, 50)


def test_yardsticks() -> None:
    active = torch.tensor([[True, False, False], [False, True, False], [False, True, True]])
    assert oracle(0, active).equal(active)
    assert previous(0, active).tolist() == [[True, True, True], [True, False, False], [False, True, False]]
    hot = hottest([torch.tensor([5, 1, 4]), torch.tensor([0, 0, 0])], 0.9)
    assert hot(0, active)[2].tolist() == [True, False, True] and not bool(hot(1, active).any())
    assert bool(hottest([torch.tensor([5, 1, 4])], 1.0)(0, active).all())
    drawn = at_random(0.25)(0, torch.zeros(200, 100, dtype=torch.bool))
    assert float(drawn.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_kinds_without_matrices_score_as_their_gate() -> None:
    gate = in_format(torch.randn(20, 64, generator=torch.Generator().manual_seed(3)), "fp32")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    guess = Guess.of(LayerPredictor("low_bit_gate", torch.zeros(20)), gate)
    error = (guess.selector.scores(x, x) - x @ gate.values().t()).std() / (x @ gate.values().t()).std()
    assert float(error) < 0.15
    assert bool((Guess.of(LayerPredictor("sign_bits", torch.zeros(20)), gate).selector.scores(x, x) % 1 == 0).all())
