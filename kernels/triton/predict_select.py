"""Launcher of `kernels.predict_select`: names in segments, then one list of them."""

from __future__ import annotations

from torch import Tensor

from .activate import NAME
from .layout import matrices
from .segments import join
from .select import select


def launch(x: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    index, count, _ = join(select(x, matrices(x.shape[1], weight), NAME.value, 0.0, bias=offset))
    return index, count
