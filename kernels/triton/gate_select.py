"""Launcher of `kernels.gate_select`: segments, then one list of them."""

from __future__ import annotations

from torch import Tensor

from .layout import matrices
from .segments import join
from .select import select


def launch(x: Tensor, gate: Tensor, kind: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    return join(select(x, matrices(x.shape[1], gate), kind, threshold))
