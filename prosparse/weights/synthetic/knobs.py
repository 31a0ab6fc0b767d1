"""The four knobs of a synthetic model, the ranges that they leave each other, and the rates that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import ModelConfig
from ...errors import UserError
from .activity import beta_quantiles, hot_share, layer_rates, pair_overlap
from .text import STAY

# Where a knob is left out. At MiniCPM-S-1B's sparsity of 0.88 these are a skew of 0.50 and an overlap of 0.41.
CONCENTRATION, CORRELATION = 8.0, 0.5
PREDICTABILITY = 0.9
ALIKE, APART = 1e5, 0.05  # concentrations beyond which nothing changes
POINTS = 100  # quantiles that stand for the neurons of a layer while a knob is being solved for
SLACK = 0.005  # how far beyond a range a value may be, since people round


@dataclass(frozen=True)
class Knobs:
    """What a synthetic model is asked to be; `docs/synthetic.md` says how each value is measured.

    Args:
        activation_sparsity: share of exact zeros in act(gate) * up, 0 to 1; mean over tokens, then layers.
        skew: share of all activations that the hottest fifth of a layer's neurons carries. 0.2 is none, the most is 1,
            or 0.2 / (1 - activation_sparsity) where that is less.
        predictability: share of the gate's energy in a planted part of rank `planted_rank`, 0 to 1.
        overlap: share of a token's active neurons that were active for the token before; at least what skew makes by
            chance.
    """

    activation_sparsity: float
    skew: float | None = None
    predictability: float | None = None
    overlap: float | None = None

    def as_dict(self) -> dict[str, float]:
        """For config.json and benchmark rows, rounded to what can be measured."""
        return {name: round(value, 4) for name, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class Activity:
    """Knobs with nothing left open, and what weights need to know to meet them.

    Args:
        knobs: all four.
        concentration: of the Beta distribution of the rates.
        correlation: of the pre-activations of two tokens of one cluster.
        layer_rates: [layers] float64, mean share of active neurons.
    """

    knobs: Knobs
    concentration: float
    correlation: float
    layer_rates: Tensor

    def rates(self, layer: int, neurons: int, seed: int) -> Tensor:
        """How often each neuron of a layer is to be active, [neurons] float64, in random order."""
        rates = beta_quantiles(self.layer_rates[layer : layer + 1], self.concentration, neurons)[0]
        return rates[torch.randperm(neurons, generator=torch.Generator().manual_seed(seed * 1_000_003 + layer))]


def settle(config: ModelConfig, asked: Knobs | float) -> Activity:
    """Fill in the knobs that were left out, and solve for the numbers behind them.

    Args:
        config: the shape.
        asked: the knobs, or the activation sparsity alone.

    Raises:
        UserError: a knob out of its range, or an activation that makes no zeros.
    """
    asked = asked if isinstance(asked, Knobs) else Knobs(asked)
    if not config.activation.makes_zeros:
        raise UserError(
            f"synthetic: {config.activation} makes no exact zeros, so no activation sparsity can be chosen; take a "
            "shape with relu, fatrelu, relu2 or dReLU"
        )
    sparsity = _share("activation sparsity", asked.activation_sparsity)
    predictability = PREDICTABILITY if asked.predictability is None else _share("predictability", asked.predictability)
    means = layer_rates(1 - sparsity, config.layers)

    def skew_at(log_concentration: float) -> float:
        return hot_share(beta_quantiles(means, math.exp(log_concentration), POINTS))

    concentration = CONCENTRATION
    if asked.skew is not None:
        where = f"at activation sparsity {sparsity:g}"
        concentration = math.exp(_solve("skew", asked.skew, skew_at, math.log(ALIKE), math.log(APART), where))
    rates = beta_quantiles(means, concentration, POINTS)
    skew, on_up = hot_share(rates), config.activation.on_up
    alone = pair_overlap(rates, 0.0, on_up)

    def overlap_at(correlation: float) -> float:
        return STAY * pair_overlap(rates, correlation, on_up) + (1 - STAY) * alone

    correlation = CORRELATION
    if asked.overlap is not None:
        where = f"at activation sparsity {sparsity:g} and skew {skew:.2f}"
        correlation = _solve("overlap", asked.overlap, overlap_at, 0.0, 1.0, where)
    knobs = Knobs(sparsity, skew, predictability, overlap_at(correlation))
    return Activity(knobs, concentration, correlation, means)


def planted_rank(hidden: int) -> int:
    """Rank of the planted part of a gate: 256, or a sixth of hidden where that is less."""
    return max(1, min(256, hidden // 6))


def _share(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"synthetic: {what} must be a number from 0 to 1, got {value!r}")
    return float(value)


def _solve(name: str, wanted: float, measured: Callable[[float], float], start: float, end: float, where: str) -> float:
    """The argument between start and end at which a function that rises from one to the other has a value."""
    wanted = _share(name, wanted)
    low, high = measured(start), measured(end)
    if not low - SLACK <= wanted <= high + SLACK:
        raise UserError(f"synthetic: {name} can be from {low:.2f} to {high:.2f} {where}, got {wanted:g}")
    for _ in range(24):
        middle = (start + end) / 2
        start, end = (middle, end) if measured(middle) < wanted else (start, middle)
    return (start + end) / 2
