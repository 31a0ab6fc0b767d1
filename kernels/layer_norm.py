"""Norms with a bias (Ba et al., "Layer Normalization", 2016), beside those without.

    y[t] = (x[t] - mean(x[t])) / sqrt(variance(x[t]) + eps) * weight + bias

It is PyTorch's own: a decode step of OPT or Falcon has two a layer, each some microseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rms_norm import rms_norm


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """LayerNorm of every token, or RMSNorm where there is no bias.

    Args:
        x: [tokens, hidden] float32, contiguous.
        weight, bias: [hidden] float32.
        eps: added to the variance, or to the mean square.
        dtype: of the result, which is computed in fp32.

    Returns:
        [tokens, hidden] of this dtype; each token's result does not depend on the others, up to 16 tokens.

    Raises:
        ValueError: sizes disagree, or a tensor is not contiguous float32.
    """
    if bias is None:
        return rms_norm(x, weight, eps, dtype)
    if x.dim() != 2 or not x.shape[1:] == weight.shape == bias.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, weight, bias))
        raise ValueError(f"layer_norm: x must be [tokens, hidden], weight and bias [hidden], got {shapes}")
    if not x.dtype == weight.dtype == bias.dtype == torch.float32:
        raise ValueError(f"layer_norm: all must be float32, got {x.dtype}, {weight.dtype} and {bias.dtype}")
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)
