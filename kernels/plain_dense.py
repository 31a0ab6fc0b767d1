"""A whole FFN without up projection for a few tokens, reading every weight: the dense baseline of OPT and Falcon.

    y[t] = sum over all neurons j of act(gate[j] . x[t] + gate_bias[j]) * down[j], + down_bias

It reads 2 * neurons * hidden weights once, in the same chunks and order as `plain_exact`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation
from .library import register
from .plain_exact import PLAIN_ARGUMENTS, check_plain, fake_plain, plain_value
from .quant import as_matrix
from .tally import DOWN_ROWS, NONZERO, UP_ROWS
from .weight import Weight


def plain_dense(
    x: Tensor,
    gate: Weight,
    gate_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    activation: Activation,
    tally: Tensor,
) -> Tensor:
    """FFN output, every neuron computed.

    Args:
        x, gate, gate_bias, down, down_bias, tally: as of `plain_exact`.
        activation: any without ReLU on up.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.
    """
    check_plain("plain_dense", x, gate, gate_bias, down, down_bias, activation)
    return torch.ops.prosparse.plain_dense(
        x, gate.codes, gate_bias, down.codes, down_bias, activation.code, activation.threshold, tally
    )


def plain_dense_reference(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    kind: int,
    threshold: float,
    tally: Tensor,
) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    _, h = plain_value(x, gate, gate_bias, kind, threshold)
    tally[UP_ROWS] += gate.shape[0]
    tally[DOWN_ROWS] += gate.shape[0]
    tally[NONZERO] += (h != 0).sum()
    y = h @ as_matrix(down, x.shape[1])
    return (y if down_bias is None else y + down_bias).to(x.dtype)


register(f"plain_dense{PLAIN_ARGUMENTS} -> Tensor", plain_dense_reference, fake_plain)
