"""RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).

y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import MAX_ROWS
from .library import register


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise every token.

    Args:
        x: [tokens, hidden] float32, contiguous.
        weight: [hidden] float32, contiguous.
        eps: added to the mean square.
        dtype: of the result, which is computed in fp32: fp32 | fp16 | bf16.

    Returns:
        [tokens, hidden] of this dtype. On the CPU each token's result does not depend on the others.

    Raises:
        ValueError: sizes disagree, or a tensor is not contiguous float32.
    """
    if x.dim() != 2 or weight.shape != x.shape[1:]:
        raise ValueError(
            f"rms_norm: x must be [tokens, hidden] and weight [hidden], got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if not (x.dtype == weight.dtype == torch.float32 and x.is_contiguous() and weight.is_contiguous()):
        raise ValueError(f"rms_norm: x and weight must be contiguous float32, got {x.dtype} and {weight.dtype}")
    if x.shape[0] <= MAX_ROWS and dtype == torch.float32:
        return torch.ops.prosparse.rms_norm(x, weight, eps)
    out = torch.empty_like(x, dtype=dtype)
    torch.ops.prosparse.rms_norm_to(x, weight, eps, out)
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def _into(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    out.copy_(rms_norm_reference(x, weight, eps))


def _fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _fake_into(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    return None


register("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm_reference, _fake)
register("rms_norm_to(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()", _into, _fake_into)
