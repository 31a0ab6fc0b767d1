"""A predictor of one layer before its threshold is set, and the line that ties its score to the gate.

    gate ~ slope * score + intercept, with an error of deviation d      per neuron, by least squares
    offset = (intercept - threshold + m * d) / slope                    m: the margin, one per layer

Under errors that are normal this names a neuron where the chance that it is active exceeds one level for the whole
layer, so no other choice of offsets finds as much with as few.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from prosparse.kernels.weight import Weight

from ...sparsity.selectors import Selector
from ...weights.predictor import LayerPredictor
from .curve import ALWAYS, Curve

# of the gate's deviation over the score's: a smaller slope says nothing, and the neuron gets a constant
FLAT = 1e-3
STILL = 1e-10  # of the mean square of a score: a smaller variance is rounding
LEAST_DEVIATION = 1e-5  # of the gate's own: rounding, where a guess is perfect


class Line:
    """Sums for the least squares of one guess, [neurons] float64 each."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: Tensor | None = None

    def add(self, score: Tensor, gate: Tensor) -> None:
        """Both [tokens, neurons] float32."""
        rest = gate - score  # what is summed is small where the guess is good, so rounding does not drown it
        terms = (score, rest, score * score, rest * rest, score * rest)
        sums = torch.stack([term.sum(0, dtype=torch.float64) for term in terms])
        self.tokens += len(score)
        self._sums = sums if self._sums is None else self._sums + sums

    def base_and_unit(self, threshold: float) -> tuple[Tensor, Tensor]:
        """offset = base + margin * unit, [neurons] float32 each."""
        assert self._sums is not None, "no token was shown"
        s, r, ss, rr, sr = self._sums / self.tokens
        var_s, var_r, cov = (ss - s * s).clamp_min(0), (rr - r * r).clamp_min(0), sr - s * r
        var_g = (var_s + var_r + 2 * cov).clamp_min(0)
        var_s = torch.where(var_s > STILL * ss, var_s, 0.0)
        tilt = torch.where(var_s > 0, cov / var_s.clamp_min(1e-30), 0.0)
        least = torch.where(var_s > 0, FLAT * (var_g / var_s.clamp_min(1e-30)).sqrt(), 0.0)
        slope = (1 + tilt).clamp_min(least.clamp_min(1e-12))
        tilt = slope - 1
        error = (var_r - 2 * tilt * cov + tilt * tilt * var_s).clamp_min(0)
        deviation = torch.maximum(error.sqrt(), LEAST_DEVIATION * var_g.sqrt()).clamp_min(1e-9)
        return ((r - tilt * s - threshold) / slope).float(), (deviation / slope).float()


@dataclass
class Guess:
    """A predictor without offsets over the gate of its layer, and what is learned about it.

    Args:
        predictor: its offset is 0.
        selector: the same, ready to score.
    """

    predictor: LayerPredictor
    selector: Selector
    base: Tensor
    unit: Tensor
    curve: Curve

    @classmethod
    def of(cls, predictor: LayerPredictor, gate: Weight) -> Guess:
        zero = torch.zeros_like(predictor.offset)
        return cls(predictor, Selector(predictor, gate), zero, torch.ones_like(zero), Curve())

    def needed(self, residual: Tensor, x: Tensor) -> Tensor:
        """Margins that just predict each neuron, [tokens, neurons]."""
        return -(self.selector.scores(residual, x) + self.base) / self.unit

    def at(self, margin: float) -> LayerPredictor:
        """The finished predictor."""
        if margin == ALWAYS:
            offset = torch.full_like(self.base, ALWAYS)
        else:
            # what needs just this margin is predicted, whatever the rounding of the sum
            offset = self.base + margin * self.unit
            offset = offset + 4 * torch.finfo(torch.float32).eps * offset.abs()
        return dataclasses.replace(self.predictor, offset=offset.cpu())

    def expected_bytes(self, margin: float, gate: Weight) -> float:
        """Bytes that a token reads of the predictor and of the gate."""
        return self.selector.nbytes + self.curve.predicted(margin) * gate.nbytes
