"""A whole FFN without up projection (OPT, Falcon) for a few tokens, skipping exactly the neurons that are zero.

    y[t] = sum over open neurons j of act(gate[j] . x[t] + gate_bias[j]) * down[j], + down_bias

It reads the gate, a half of the FFN, and the rows of down whose neuron opens for some token. Chunks of neurons and the
order of sums are those of `glu_exact`: the bits do not depend on the number of threads, and with finite weights they
are those of `plain_dense`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation, gate_value, is_active
from .checks import check_input, check_shape
from .gate_select import check_makes_zeros
from .glu_active import check_same_format
from .library import register
from .quant import as_matrix
from .tally import DOWN_ROWS, NONZERO, UP_ROWS
from .weight import Weight


def plain_exact(
    x: Tensor,
    gate: Weight,
    gate_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    activation: Activation,
    tally: Tensor,
) -> Tensor:
    """FFN output, reading down only where the gate is open.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        gate, down: [neurons, hidden] each, one format; down has one neuron per row.
        gate_bias: [neurons] float32, added before the activation, or None.
        down_bias: [hidden] float32, added to every token's sum, or None.
        activation: any that makes zeros, without ReLU on up.
        tally: [4] int64 counters on x's device, see `kernels.tally`; what this call did is added.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32.

    Raises:
        ValueError: sizes disagree, a dtype is not supported, or the activation makes no zeros.

    Source:
        OPT's sparsity: Li et al., "The Lazy Neuron Phenomenon" (2023). Gathered rows: Liu et al., "Deja Vu" (2023).
    """
    check_plain("plain_exact", x, gate, gate_bias, down, down_bias, activation)
    check_makes_zeros("plain_exact", activation)
    return torch.ops.prosparse.plain_exact(
        x, gate.codes, gate_bias, down.codes, down_bias, activation.code, activation.threshold, tally
    )


def check_plain(
    op: str,
    x: Tensor,
    gate: Weight,
    gate_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    activation: Activation,
) -> None:
    """Checks shared by the ops of FFNs without up projection."""
    neuron_rows = ("neurons", "hidden")
    check_shape(op, x=(x, ("tokens", "hidden")), gate=(gate, neuron_rows), down=(down, neuron_rows))
    for name, bias, size in (("gate_bias", gate_bias, gate.shape[0]), ("down_bias", down_bias, gate.shape[1])):
        if bias is not None and (bias.shape != (size,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
            raise ValueError(
                f"{op}: {name} must be {size} contiguous float32 numbers, got {tuple(bias.shape)} of {bias.dtype}"
            )
    check_input(op, x)
    check_same_format(op, gate=gate, down=down)
    if activation.on_up:
        raise ValueError(f"{op}: {activation} rectifies up, which this FFN has not; use {activation.kind}")


def plain_value(
    x: Tensor, gate: Tensor, gate_bias: Tensor | None, kind: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Which neurons some token opens, [neurons] bool, and act(gate), [tokens, neurons] float32."""
    g = torch.nn.functional.linear(x.float(), as_matrix(gate, x.shape[1]), gate_bias)
    return is_active(g, kind, threshold).any(dim=0), gate_value(g, kind, threshold)


def plain_exact_reference(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    kind: int,
    threshold: float,
    tally: Tensor,
) -> Tensor:
    """The meaning of the op, in plain PyTorch. Syncs with the host to know how many rows it reads."""
    opened, value = plain_value(x, gate, gate_bias, kind, threshold)
    rows = opened.nonzero().flatten()
    h = value[:, rows]
    nonzero = h != 0
    tally[UP_ROWS] += rows.numel()
    tally[DOWN_ROWS] += nonzero.any(dim=0).sum()
    tally[NONZERO] += nonzero.sum()
    y = h @ as_matrix(down[rows], x.shape[1])
    return (y if down_bias is None else y + down_bias).to(x.dtype)


def fake_plain(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    kind: int,
    threshold: float,
    tally: Tensor,
) -> Tensor:
    """Shape of the output."""
    return torch.empty_like(x)


PLAIN_ARGUMENTS = (
    "(Tensor x, Tensor gate, Tensor? gate_bias, Tensor down, Tensor? down_bias, int kind, float threshold, "
    "Tensor(a!) tally)"
)
register(f"plain_exact{PLAIN_ARGUMENTS} -> Tensor", plain_exact_reference, fake_plain)
