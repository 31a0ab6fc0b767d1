"""Product of a few mostly-zero vectors with the down projection, reading the rows of what is not zero.

    y[t] = sum over j with h[t, j] not 0 of h[t, j] * down[j], + bias

The second half of an FFN without up projection whose first half is computed elsewhere: `accelerate` puts it in place of
the Linear that follows a ReLU. A row is read once for all tokens that need it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_input, check_shape
from .library import register
from .quant import as_matrix
from .tally import DOWN_ROWS, NONZERO, UP_ROWS
from .weight import Weight


def axpy_active(h: Tensor, down: Weight, bias: Tensor | None, tally: Tensor) -> Tensor:
    """Sum of the rows that a vector has a factor for.

    Args:
        h: activations, [tokens, neurons] fp32 | fp16 | bf16, 1 to 16 tokens.
        down: one neuron per row, [neurons, hidden].
        bias: [hidden] float32, added to every token's sum, or None.
        tally: [4] int64 counters on h's device, see `kernels.tally`; what this call did is added.

    Returns:
        [tokens, hidden], dtype of h, accumulated in fp32 in ascending order of neurons. A NaN in h is not zero.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.
    """
    check_shape("axpy_active", h=(h, ("tokens", "neurons")), down=(down, ("neurons", "hidden")))
    check_input("axpy_active", h)
    hidden = down.shape[1]
    if bias is not None and (bias.shape != (hidden,) or bias.dtype != torch.float32):
        raise ValueError(f"axpy_active: bias must be {hidden} float32 numbers, got {tuple(bias.shape)} of {bias.dtype}")
    return torch.ops.prosparse.axpy_active(h, down.codes, hidden, bias, tally)


def axpy_active_reference(h: Tensor, down: Tensor, hidden: int, bias: Tensor | None, tally: Tensor) -> Tensor:
    """The meaning of the op, in plain PyTorch. Syncs with the host to know how many rows it reads."""
    nonzero = h != 0
    rows = nonzero.any(dim=0).nonzero().flatten()
    tally[UP_ROWS] += rows.numel()
    tally[DOWN_ROWS] += rows.numel()
    tally[NONZERO] += nonzero.sum()
    y = h[:, rows].float() @ as_matrix(down[rows], hidden)
    return (y if bias is None else y + bias).to(h.dtype)


def _fake(h: Tensor, down: Tensor, hidden: int, bias: Tensor | None, tally: Tensor) -> Tensor:
    return h.new_empty(h.shape[0], hidden)


register(
    "axpy_active(Tensor h, Tensor down, int hidden, Tensor? bias, Tensor(a!) tally) -> Tensor",
    axpy_active_reference,
    _fake,
)
