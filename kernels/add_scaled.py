"""The add behind a block of the prefill: a residual in fp32 and what a GEMM made of it in its own dtype.

y = residual + scale * x
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import FLOAT_DTYPES, check_alike
from .library import register


def add_scaled(residual: Tensor, x: Tensor, scale: float) -> Tensor:
    """The new residual.

    Args:
        residual: float32, contiguous.
        x: of the same shape, fp32 | fp16 | bf16, contiguous.
        scale: factor on x.

    Returns:
        float32, of the same shape; computed in fp32.

    Raises:
        ValueError: shapes disagree, a dtype is not supported, or a tensor is not contiguous.
    """
    check_alike("add_scaled", residual=(residual, (torch.float32,)), x=(x, FLOAT_DTYPES))
    return torch.ops.prosparse.add_scaled(residual, x, scale)


def add_scaled_reference(residual: Tensor, x: Tensor, scale: float) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    return torch.add(residual, x.float(), alpha=scale)


def _fake(residual: Tensor, x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(residual)


register("add_scaled(Tensor residual, Tensor x, float scale) -> Tensor", add_scaled_reference, _fake)
