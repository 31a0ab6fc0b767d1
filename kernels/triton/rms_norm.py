"""`kernels.rms_norm`: one program per token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(x_ptr, weight_ptr, y_ptr, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    live = column < HIDDEN
    at = tl.program_id(0) * HIDDEN + column
    x = tl.load(x_ptr + at, mask=live, other=0.0)
    mean_square = tl.div_rn(tl.sum(x * x, axis=0), HIDDEN * 1.0)
    weight = tl.load(weight_ptr + column, mask=live, other=0.0)
    tl.store(y_ptr + at, tl.div_rn(x, tl.sqrt_rn(mean_square + eps)) * weight, mask=live)


def launch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    tokens, hidden = x.shape
    y = torch.empty_like(x)
    rms_norm_kernel[(tokens,)](x, weight, y, eps, HIDDEN=hidden, BLOCK=triton.next_power_of_2(hidden), num_warps=8)
    return y
