"""Launcher of `kernels.glu_exact`: gate, selection and up rows in one launch, down rows in a second."""

from __future__ import annotations

from torch import Tensor

from .down import down, new_tickets
from .layout import Norm, Residual, matrices
from .select import select


def launch(
    x: Tensor, gate: Tensor, up: Tensor, down_rows: Tensor, kind: int, threshold: float, on_up: bool, tally: Tensor,
    norm: Norm | None = None, residual: Residual | None = None, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """As the op; or of x normed, or added to a residual: residual + scale * ffn(norm(x)). See `overlap`."""
    weights = matrices(x.shape[1], gate, up)
    tickets = new_tickets(x, down_rows)
    segments = select(x, weights, kind, threshold, on_up, tally, tickets, norm, overlap=overlap)
    return down(x, down_rows, segments, tickets, residual, overlap=overlap)
