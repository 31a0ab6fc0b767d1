"""Launcher of `kernels.plain_exact`: gate and selection in one launch, down rows in a second."""

from __future__ import annotations

from torch import Tensor

from .down import down, new_tickets
from .layout import matrices
from .select import select


def launch(
    x: Tensor, gate: Tensor, gate_bias: Tensor | None, down_rows: Tensor, down_bias: Tensor | None, kind: int,
    threshold: float, tally: Tensor, listed: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """As the op; or over a list, index and count."""
    weights = matrices(x.shape[1], gate)
    tickets = new_tickets(x, down_rows)
    segments = select(x, weights, kind, threshold, False, tally, tickets, bias=gate_bias, listed=listed)
    return down(x, down_rows, segments, tickets, bias=down_bias)
