"""The FFN block without up projection that lets a predictor choose which neurons to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prosparse.kernels.plain_exact import plain_value
from prosparse.kernels.plain_predicted import plain_predicted
from prosparse.kernels.tally import PREDICTED

from .plain import PlainFFN
from .selectors import Selector


class PlainPredictedFFN(PlainFFN):
    """Reads the predictor, the gate of what it names, and down where that gate turns out open.

    What the predictor misses is missing from the result. The prefill is dense, as in every block.

    Args:
        selector: of this layer.
        others: as `PlainFFN`.
    """

    def __init__(self, *others: Any, selector: Selector, **named: Any) -> None:
        super().__init__(*others, **named)
        self.selector = selector

    def audit(self, residual: Tensor) -> tuple[int, int]:
        """How many neurons are active for a step's tokens, [tokens, hidden], and how many of them are predicted."""
        x, act = self.normed(residual), self.activation
        active, _ = plain_value(x, self.gate.codes, self.gate_bias, act.code, act.threshold)
        predicted = self.selector.select(residual, x)
        named = predicted.index[: int(predicted.count)].long()
        return int(active.sum()), int(active[named].sum())

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        rows = super().bytes_read(0, done) + done[PREDICTED] * self.gate.row_bytes
        return steps * self.selector.nbytes + rows

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        predicted = self.selector.select(residual, x)
        return plain_predicted(
            x, self.gate, self.gate_bias, self.down, self.down_bias, predicted, self.activation, tally
        )
