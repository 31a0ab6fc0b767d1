"""Select the active neurons of a step from the gate itself, exactly.

    value[t, k] = act(gate[index[k]] . x[t])      index = ascending ids of neurons that any token opens

It reads the whole gate (neurons * hidden weights), a third of the FFN; what it saves is the closed rows of up and down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation, gate_value, is_active
from .active import ActiveNeurons, compact
from .checks import check_input, check_shape
from .library import register
from .quant import as_matrix
from .weight import Weight


def gate_select(x: Tensor, gate: Weight, activation: Activation) -> ActiveNeurons:
    """The union of the neurons that the tokens of x open, with the gate values already computed.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        gate: gate projection, [neurons, hidden].
        activation: any that makes zeros.

    Returns:
        `ActiveNeurons` of capacity `neurons`.

    Raises:
        ValueError: sizes disagree, a dtype is not supported, or the activation makes no zeros.

    Source:
        Steps 1 and 2 of the accurate operators of Song et al., "ProSparse" (2024), section 3.3.
    """
    check_shape("gate_select", x=(x, ("tokens", "hidden")), gate=(gate, ("neurons", "hidden")))
    check_input("gate_select", x)
    check_makes_zeros("gate_select", activation)
    return ActiveNeurons(*torch.ops.prosparse.gate_select(x, gate.codes, activation.code, activation.threshold))


def check_makes_zeros(op: str, activation: Activation) -> None:
    """Refuse to skip neurons of an activation that closes none."""
    if not activation.makes_zeros:
        raise ValueError(f"{op}: {activation} makes no exact zeros, so there is nothing to skip; use glu_dense")


def gate_select_reference(x: Tensor, gate: Tensor, kind: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The meaning of the op, in plain PyTorch, without a host sync."""
    g = torch.nn.functional.linear(x.float(), as_matrix(gate, x.shape[1]))
    index, count = compact(is_active(g, kind, threshold).any(dim=0))
    return index, count, gate_value(g, kind, threshold)[:, index.long()]


def _fake(x: Tensor, gate: Tensor, kind: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    neurons = gate.shape[0]
    return (
        x.new_empty(neurons, dtype=torch.int32),
        x.new_empty(1, dtype=torch.int32),
        x.new_empty(x.shape[0], neurons, dtype=torch.float32),
    )


register(
    "gate_select(Tensor x, Tensor gate, int kind, float threshold) -> (Tensor, Tensor, Tensor)",
    gate_select_reference,
    _fake,
)
