"""FFNs without up projection for the op tests, and their float64 meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cases import make_case, pre_activation
from closeness import Bounded
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import Weight

RELU = Activation("relu")


@dataclass(frozen=True, eq=False)
class Plain:
    """One FFN without up projection and its input; either bias may be missing."""

    x: Tensor
    gate: Weight
    gate_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor, Weight, Tensor | None, Weight, Tensor | None]:
        return self.x, self.gate, self.gate_bias, self.down, self.down_bias


def make(tokens, hidden, neurons, weights=torch.bfloat16, bias=True, shift=0.0, **how) -> Plain:
    """`shift` moves every pre-activation."""
    case, rng = make_case(tokens, hidden, neurons, weights, **how), torch.Generator().manual_seed(1)
    gate_bias, down_bias = torch.randn(neurons, generator=rng) + shift, torch.randn(hidden, generator=rng)
    return Plain(case.x, case.gate, gate_bias if bias else None, case.down, down_bias if bias else None)


def run(op, case: Plain, activation=RELU):
    """(output, tally)"""
    tally = new_tally("cpu")
    return op(*case.arguments, activation, tally), tally


def gates(case: Plain) -> Bounded:
    g = pre_activation(case)
    return g if case.gate_bias is None else g.plus(case.gate_bias)


def clear_of_the_threshold(case: Plain, activation: Activation) -> Plain:
    """FATReLU jumps at t, where rounding decides: biases are moved until no gate is that near."""
    while activation.threshold:
        g = gates(case)
        near = ((g.value - activation.threshold).abs() <= 2 * g.error).any(0)
        if not bool(near.any()):
            break
        case = replace(case, gate_bias=case.gate_bias + 0.01 * near)
    return case


def meaning(case: Plain, activation: Activation, chosen: Tensor | None = None) -> Bounded:
    """The FFN in float64; of a list, over its neurons, [neurons] bool."""
    g = gates(case)
    value = g.where(g.value >= activation.threshold) if activation.threshold else g.relu()
    value = value if chosen is None else value.where(chosen)
    y = (value * value if activation.kind == "relu2" else value) @ case.down.values()
    return y if case.down_bias is None else y.plus(case.down_bias)
