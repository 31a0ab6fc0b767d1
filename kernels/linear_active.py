"""The rows of a product that a guess names, and zeros.

    y[t, j] = weight[j] . x[t] + bias[j]  for listed j, else 0

The first half of an FFN without up projection whose activation and second half are computed elsewhere: `accelerate`
puts it in place of the Linear before a ReLU. On the CPU a listed number has the bits of `linear`, bias aside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .active import ActiveNeurons
from .checks import check_input, check_shape
from .glu_active import check_list
from .library import register
from .quant import as_matrix
from .tally import PREDICTED
from .weight import Weight


def linear_active(x: Tensor, weight: Weight, bias: Tensor | None, listed: ActiveNeurons, tally: Tensor) -> Tensor:
    """Some rows of `weight` times x.

    Args:
        x: [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        weight: [neurons, hidden], any format.
        bias: [neurons] float32, or None.
        listed: from `predict_select` or `sign_select`; values are not needed.
        tally: [4] int64 counters on x's device, see `kernels.tally`; the rows are added to PREDICTED.

    Returns:
        [tokens, neurons], dtype of x, accumulated in fp32.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.
        RuntimeError: an index or the count is out of range, or the list does not ascend (checked where the list can
            be read without a sync: CPU).
    """
    check_shape("linear_active", x=(x, ("tokens", "hidden")), weight=(weight, ("neurons", "hidden")))
    check_input("linear_active", x)
    neurons = weight.shape[0]
    if bias is not None and (bias.shape != (neurons,) or bias.dtype != torch.float32):
        raise ValueError(
            f"linear_active: bias must be {neurons} float32 numbers, got {tuple(bias.shape)} of {bias.dtype}"
        )
    return torch.ops.prosparse.linear_active(x, weight.codes, bias, listed.index, listed.count, tally)


def linear_active_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, count: Tensor, tally: Tensor
) -> Tensor:
    """The meaning of the op, in plain PyTorch. It multiplies all rows, so that it waits for no list on a GPU."""
    neurons = weight.shape[0]
    if index.device.type == "cpu":
        check_list("linear_active", index, count, neurons)
    slot = torch.arange(index.numel(), device=index.device)
    ids = torch.where(slot < count, index, neurons).long()  # the others go to a spare place behind the last neuron
    listed = torch.zeros(neurons + 1, dtype=torch.bool, device=index.device).scatter_(0, ids, True)[:neurons]
    tally[PREDICTED] += listed.sum()
    y = torch.nn.functional.linear(x.float(), as_matrix(weight, x.shape[1]), bias)
    return torch.where(listed, y, 0).to(x.dtype)


def _fake(x: Tensor, weight: Tensor, *arguments: object) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


register(
    "linear_active(Tensor x, Tensor weight, Tensor? bias, Tensor index, Tensor count, Tensor(a!) tally) -> Tensor",
    linear_active_reference,
    _fake,
)
