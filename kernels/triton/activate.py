"""`kernels.activation` inside a kernel. KIND is the code of the activation."""

from __future__ import annotations

import triton
import triton.language as tl

from ..activation import KINDS

FATRELU = tl.constexpr(KINDS.index("fatrelu"))
RELU2 = tl.constexpr(KINDS.index("relu2"))
SILU = tl.constexpr(KINDS.index("silu"))
NAME = tl.constexpr(len(KINDS))  # no activation: the score of a guess, which names a neuron unless it is below 0


@triton.jit
def if_open(g, threshold, KIND: tl.constexpr):
    """g where the neuron is open, 1 where a guess names it, else 0. NaN fails every comparison, so it stays."""
    if KIND == NAME:
        opened = tl.where(g < 0.0, 0.0, 1.0)
    else:
        closed = g < threshold if KIND == FATRELU else g <= 0.0
        opened = tl.where(closed, 0.0, g)
    return opened


@triton.jit
def value_of_open(g, KIND: tl.constexpr):
    """The factor a neuron contributes, from what `if_open` left."""
    return g * g if KIND == RELU2 else g


@triton.jit
def gate_value(g, threshold, KIND: tl.constexpr):
    """act(g)."""
    if KIND == SILU:
        value = g / (1.0 + tl.exp(-g))
    else:
        value = value_of_open(if_open(g, threshold, KIND), KIND)
    return value


@triton.jit
def weigh(value, up, ON_UP: tl.constexpr):
    """h = value * up, exactly zero where the gate is closed even if up overflowed; up is rectified for dReLU."""
    if ON_UP:
        up = tl.where(up <= 0.0, 0.0, up)
    return tl.where(value != 0.0, value * up, 0.0)
