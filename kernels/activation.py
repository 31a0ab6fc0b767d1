"""Which neurons are active, and what their gate contributes.

A gated FFN is y = down^T (act(gate x) * up x). `Activation` is the act: every kind here but `silu` makes exact zeros.
The gate's pre-activation g is the fp32 accumulation, before any rounding:

    relu, relu2    active when not g <= 0         value g, g * g
    fatrelu(t)     active when not g < t, t > 0   value g            (Song et al., "ProSparse", 2024, eq. 3)
    silu           every neuron                   value g * sigmoid(g)

NaN satisfies both tests, so a NaN gate is active and reaches the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("relu", "fatrelu", "relu2", "silu")  # position = the code the compiled kernels know


@dataclass(frozen=True)
class Activation:
    """The activation of an FFN.

    Args:
        kind: one of `KINDS`, applied to the gate.
        threshold: t of fatrelu, in units of the pre-activation; 0 for every other kind.
        on_up: ReLU on the up projection as well (dReLU: Song et al., "Turbo Sparse", 2024, eq. 2).

    Raises:
        ValueError: unknown kind, or a threshold that the kind does not take.
    """

    kind: str
    threshold: float = 0.0
    on_up: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"activation: kind is {self.kind!r}; supported are {', '.join(KINDS)}")
        takes_threshold = self.kind == "fatrelu"
        if takes_threshold and not 0 < self.threshold < float("inf"):
            raise ValueError(
                f"activation: fatrelu needs a finite threshold above 0, got {self.threshold}; a threshold of 0 is relu"
            )
        if not takes_threshold and self.threshold != 0:
            raise ValueError(f"activation: {self.kind} takes no threshold, got {self.threshold}; use fatrelu")

    @property
    def code(self) -> int:
        """The number by which compiled kernels know the kind."""
        return KINDS.index(self.kind)

    @property
    def makes_zeros(self) -> bool:
        """True when the gate alone closes neurons, so that skipping them is exact."""
        return self.kind != "silu"

    def __str__(self) -> str:
        name = f"fatrelu({self.threshold:g})" if self.kind == "fatrelu" else self.kind
        return f"d{name}" if self.on_up else name


def is_active(gate: Tensor, code: int, threshold: float) -> Tensor:
    """Where a pre-activation opens its neuron; same shape, bool."""
    if KINDS[code] == "silu":
        return torch.ones_like(gate, dtype=torch.bool)
    return ~(gate < threshold) if KINDS[code] == "fatrelu" else ~(gate <= 0)


def gate_value(gate: Tensor, code: int, threshold: float) -> Tensor:
    """act(gate): the factor a neuron's gate contributes; same shape and dtype, zero where it is closed."""
    if KINDS[code] == "silu":
        return torch.nn.functional.silu(gate)
    value = gate * gate if KINDS[code] == "relu2" else gate
    return torch.where(is_active(gate, code, threshold), value, torch.zeros_like(gate))


def up_value(up: Tensor, on_up: bool) -> Tensor:
    """The factor a neuron's up projection contributes: ReLU of it for dReLU models (NaN stays NaN)."""
    return torch.where(up <= 0, torch.zeros_like(up), up) if on_up else up
