"""The FFN block that lets a predictor choose which neurons to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.decode_layers import Glu
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_predicted import glu_predicted
from prosparse.kernels.tally import PREDICTED

from .ffn import GatedFFN
from .selectors import Selector


class PredictedFFN(GatedFFN):
    """Reads the predictor, the gate of what it names, and up and down where that gate turns out open.

    What the predictor misses is missing from the result. The prefill is dense, as in every block.

    Args:
        selector: of this layer.
        others: as `GatedFFN`.
    """

    def __init__(self, *others: Any, selector: Selector) -> None:
        super().__init__(*others)
        self.selector = selector

    def glu(self) -> Glu:
        return Glu(self.norm, self.gate, self.up, self.down, self.activation, False, self.selector.guess)

    def audit(self, residual: Tensor) -> tuple[int, int]:
        """How many neurons are active for a step's tokens, [tokens, hidden], and how many of them are predicted."""
        x = self.normed(residual)
        active, predicted = gate_select(x, self.gate, self.activation), self.selector.select(residual, x)
        ids, named = (found.index[: int(found.count)] for found in (active, predicted))
        return ids.numel(), int(torch.isin(ids, named).sum())

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        rows = super().bytes_read(0, done) + done[PREDICTED] * self.gate.row_bytes
        return steps * self.selector.nbytes + rows

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        predicted = self.selector.select(residual, x)
        return glu_predicted(x, self.gate, self.up, self.down, predicted, self.activation, tally)
