"""Launcher of `kernels.plain_dense`: gate rows of every neuron, then down rows."""

from __future__ import annotations

from torch import Tensor

from .down import down, new_tickets
from .glu_dense import every_neuron
from .layout import matrices


def launch(
    x: Tensor, gate: Tensor, gate_bias: Tensor | None, down_rows: Tensor, down_bias: Tensor | None, kind: int,
    threshold: float, tally: Tensor,
) -> Tensor:  # fmt: skip
    tickets = new_tickets(x, down_rows)
    h = every_neuron(x, matrices(x.shape[1], gate), gate_bias, kind, threshold, False, tally, tickets)
    return down(x, down_rows, h, tickets, bias=down_bias)
