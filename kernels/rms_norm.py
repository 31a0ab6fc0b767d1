"""RMSNorm of a few tokens (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).

y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import MAX_ROWS
from .library import register


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise every token.

    Args:
        x: [tokens, hidden] float32, contiguous. More than 16 tokens go to PyTorch.
        weight: [hidden] float32, contiguous.
        eps: added to the mean square.

    Returns:
        [tokens, hidden] float32. Up to 16 tokens, each one's result does not depend on the others.

    Raises:
        ValueError: sizes disagree, or a tensor is not contiguous float32.
    """
    if x.dim() != 2 or weight.shape != x.shape[1:]:
        raise ValueError(
            f"rms_norm: x must be [tokens, hidden] and weight [hidden], got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if not (x.dtype == weight.dtype == torch.float32 and x.is_contiguous() and weight.is_contiguous()):
        raise ValueError(f"rms_norm: x and weight must be contiguous float32, got {x.dtype} and {weight.dtype}")
    if x.shape[0] > MAX_ROWS:
        return rms_norm_reference(x, weight, eps)
    return torch.ops.prosparse.rms_norm(x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def _fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


register("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm_reference, _fake)
