"""Checking a predictor while it runs: every so many decode steps, what it named is compared with what was active.

An audited step walks block by block and gives the same tokens; it reads the whole gate once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model.decoder import Decoder
from ..sparsity import has_selector


def check_every(every: int | None, mode: str) -> int:
    """Steps from one audit to the next; 0 for none. Raises UserError for a number that is none, or another mode."""
    if every is None:
        return 0
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise UserError(f"load: audit must be a whole number of at least 1, got {every!r}")
    if mode != "predicted":
        raise UserError(f"load: audit needs mode predicted, but the mode is {mode}; pass a predictor")
    return every


class Audit:
    """The audits of one run.

    Args:
        decoder: whose predicted layers are looked at.
        every: steps from one audited step to the next, beginning with the first.
    """

    def __init__(self, decoder: Decoder, every: int) -> None:
        self.blocks, self.every, self.steps = [ffn for _, ffn in decoder.blocks], every, 0
        self.counts = torch.zeros(len(self.blocks), 2, dtype=torch.float64)  # active, and named among them

    def of_step(self, step: int) -> Callable[[int, Tensor], None] | None:
        """What watches this step of the run; None where it is not audited."""
        if step % self.every:
            return None
        self.steps += 1
        return self._watch

    def stats(self) -> dict[str, Any]:
        """{"steps", "recall": {"mean", "layers"}}: None for a layer that is not predicted, or was never active."""
        layers = [round(found / active, 6) if active else None for active, found in self.counts.tolist()]
        known = [recall for recall in layers if recall is not None]
        mean = round(sum(known) / len(known), 6) if known else None
        return {"steps": self.steps, "recall": {"mean": mean, "layers": layers}}

    def _watch(self, layer: int, residual: Tensor) -> None:
        ffn = self.blocks[layer]
        if has_selector(ffn):
            self.counts[layer] += torch.tensor(ffn.audit(residual), dtype=torch.float64)
