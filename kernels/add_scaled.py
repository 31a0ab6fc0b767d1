"""The add behind a block of the prefill: a residual in fp32 and what a GEMM made of it in its own dtype.

y = residual + scale * x
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import FLOAT_DTYPES
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
    if residual.shape != x.shape or residual.dtype != torch.float32 or x.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"add_scaled: residual must be float32 and x of its shape and a float dtype, got {tuple(residual.shape)} "
            f"{residual.dtype} and {tuple(x.shape)} {x.dtype}"
        )
    if not (residual.is_contiguous() and x.is_contiguous()):
        raise ValueError("add_scaled: residual and x must be contiguous; call .contiguous()")
    return torch.ops.prosparse.add_scaled(residual, x, scale)


def add_scaled_reference(residual: Tensor, x: Tensor, scale: float) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    return torch.add(residual, x.float(), alpha=scale)


def _fake(residual: Tensor, x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(residual)


register("add_scaled(Tensor residual, Tensor x, float scale) -> Tensor", add_scaled_reference, _fake)
