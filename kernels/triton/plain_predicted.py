"""Launcher of `kernels.plain_predicted`: `plain_exact` over a list."""

from __future__ import annotations

from torch import Tensor

from . import plain_exact


def launch(
    x: Tensor, gate: Tensor, gate_bias: Tensor | None, down_rows: Tensor, down_bias: Tensor | None, index: Tensor,
    count: Tensor, kind: int, threshold: float, tally: Tensor,
) -> Tensor:  # fmt: skip
    return plain_exact.launch(x, gate, gate_bias, down_rows, down_bias, kind, threshold, tally, listed=(index, count))
