"""Up and down projections of the listed neurons only.

    h[t, k] = value[t, k] * (up[index[k]] . x[t])       y[t] = sum over k < count of h[t, k] * down[index[k]]

The second half of a sparse FFN, after `gate_select`. It reads 2 * count * hidden weights, once for all tokens.
A product h that is exactly zero contributes nothing: its down row is not multiplied, nor read where no token needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation, up_value
from .active import ActiveNeurons
from .checks import check_input, check_shape
from .library import register
from .quant import as_matrix
from .tally import DOWN_ROWS, NONZERO, UP_ROWS
from .weight import Weight


def glu_active(
    x: Tensor, up: Weight, down: Weight, active: ActiveNeurons, activation: Activation, tally: Tensor
) -> Tensor:
    """FFN output from the active neurons and their gate values.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        up: up projection, [neurons, hidden].
        down: down projection with one neuron per row, [neurons, hidden].
        active: from `gate_select`, with value.
        activation: decides whether up is rectified as well (dReLU).
        tally: [4] int64 counters on x's device, see `kernels.tally`; what this call did is added.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32 in ascending order of neurons.

    Raises:
        ValueError: sizes disagree, a dtype is not supported, or the list carries no gate values.
        RuntimeError: an index or the count is out of range, or the list does not ascend (checked where the list can
            be read without a sync: CPU).

    Source:
        Gathered FFN rows: Liu et al., "Deja Vu" (2023). Neuron-wise operators: Song et al., "PowerInfer" (2023).
    """
    if active.value is None:
        raise ValueError("glu_active: active.value is None, but the gate values are needed; use gate_select's list")
    check_shape(
        "glu_active",
        x=(x, ("tokens", "hidden")),
        up=(up, ("neurons", "hidden")),
        down=(down, ("neurons", "hidden")),
        index=(active.index, ("capacity",)),
        value=(active.value, ("tokens", "capacity")),
    )
    check_input("glu_active", x)
    check_same_format("glu_active", up=up, down=down)
    return torch.ops.prosparse.glu_active(
        x, up.codes, down.codes, active.index, active.count, active.value, activation.on_up, tally
    )


def check_same_format(op: str, **weights: Weight) -> None:
    """The matrices of one FFN share a format."""
    formats = {name: weight.format for name, weight in weights.items()}
    if len(set(formats.values())) > 1:
        raise ValueError(f"{op}: the weights of one FFN must share a format, got {formats}; convert them to one")


def glu_active_reference(
    x: Tensor, up: Tensor, down: Tensor, index: Tensor, count: Tensor, value: Tensor, on_up: bool, tally: Tensor
) -> Tensor:
    """The meaning of the op, in plain PyTorch. Syncs with the host to read `count`."""
    rows = check_list("glu_active", index, count, up.shape[0])
    n = rows.numel()
    u = up_value(torch.nn.functional.linear(x.float(), as_matrix(up[rows], x.shape[1])), on_up)
    h = weigh(value[:, :n], u)
    nonzero = h != 0
    tally[UP_ROWS] += n
    tally[DOWN_ROWS] += nonzero.any(dim=0).sum()
    tally[NONZERO] += nonzero.sum()
    return (h @ as_matrix(down[rows], x.shape[1])).to(x.dtype)


def check_list(op: str, index: Tensor, count: Tensor, neurons: int) -> Tensor:
    """The ids of a list, [count] int64. Raises RuntimeError unless they are in range and ascend."""
    n = int(count)
    if not 0 <= n <= index.numel():
        raise RuntimeError(f"{op}: count is {n} but the list has capacity {index.numel()}; select again")
    rows = index[:n].long()
    if n and not (0 <= int(rows.min()) and int(rows.max()) < neurons):
        raise RuntimeError(f"{op}: index holds {int(rows.min())}..{int(rows.max())} but there are {neurons} neurons")
    if bool((rows[1:] <= rows[:-1]).any()):
        raise RuntimeError(f"{op}: index must ascend; sort the list")
    return rows


def weigh(value: Tensor, up: Tensor) -> Tensor:
    """h = value * up, exactly zero where the gate is closed even if up overflowed."""
    return torch.where(value != 0, value * up, torch.zeros_like(value))


def _fake(
    x: Tensor, up: Tensor, down: Tensor, index: Tensor, count: Tensor, value: Tensor, on_up: bool, tally: Tensor
) -> Tensor:
    return torch.empty_like(x)


register(
    "glu_active(Tensor x, Tensor up, Tensor down, Tensor index, Tensor count, Tensor value, bool on_up, "
    "Tensor(a!) tally) -> Tensor",
    glu_active_reference,
    _fake,
)
