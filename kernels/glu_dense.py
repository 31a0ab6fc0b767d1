"""A whole gated FFN for a few tokens, reading every weight: the dense baseline, and the path of SiLU models.

    y[t] = sum over all neurons j of (act(gate[j] . x[t]) * (up[j] . x[t])) * down[j]

It reads 3 * neurons * hidden weights once, in the same chunks and order as `glu_exact`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation, gate_value, up_value
from .glu_active import weigh
from .glu_exact import GLU_ARGUMENTS, check_glu, fake_glu
from .library import register
from .quant import as_matrix
from .tally import DOWN_ROWS, NONZERO, UP_ROWS
from .weight import Weight


def glu_dense(x: Tensor, gate: Weight, up: Weight, down: Weight, activation: Activation, tally: Tensor) -> Tensor:
    """FFN output, every neuron computed.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        gate, up, down: [neurons, hidden] each, one format; down has one neuron per row.
        activation: any.
        tally: [4] int64 counters on x's device, see `kernels.tally`; what this call did is added.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.
    """
    check_glu("glu_dense", x, gate, up, down)
    return torch.ops.prosparse.glu_dense(
        x, gate.codes, up.codes, down.codes, activation.code, activation.threshold, activation.on_up, tally
    )


def glu_dense_reference(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: int, threshold: float, on_up: bool, tally: Tensor
) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    value = gate_value(torch.nn.functional.linear(x.float(), as_matrix(gate, x.shape[1])), kind, threshold)
    u = up_value(torch.nn.functional.linear(x.float(), as_matrix(up, x.shape[1])), on_up)
    h = weigh(value, u)
    tally[UP_ROWS] += up.shape[0]
    tally[DOWN_ROWS] += down.shape[0]
    tally[NONZERO] += (h != 0).sum()
    return (h @ as_matrix(down, x.shape[1])).to(x.dtype)


register(f"glu_dense{GLU_ARGUMENTS} -> Tensor", glu_dense_reference, fake_glu)
