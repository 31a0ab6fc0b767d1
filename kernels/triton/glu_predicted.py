"""Launcher of `kernels.glu_predicted`: gate and up rows of the listed neurons in one launch, down rows in a second."""

from __future__ import annotations

from torch import Tensor

from .down import down, new_tickets
from .layout import Norm, Residual, matrices
from .select import select


def launch(
    x: Tensor, gate: Tensor, up: Tensor, down_rows: Tensor, index: Tensor, count: Tensor, kind: int, threshold: float,
    on_up: bool, tally: Tensor, norm: Norm | None = None, residual: Residual | None = None,
) -> Tensor:  # fmt: skip
    """As the op; or of x normed, or added to a residual: residual + scale * ffn(norm(x))."""
    weights = matrices(x.shape[1], gate, up)
    tickets = new_tickets(x, down_rows)
    segments = select(x, weights, kind, threshold, on_up, tally, tickets, norm, listed=(index, count))
    return down(x, down_rows, segments, tickets, residual)
