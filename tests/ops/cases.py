"""Inputs of the op tests, and the float64 meaning of an FFN on the active set that the op itself chose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from closeness import Bounded
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.weight import Weight

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SPARSE = [
    Activation("relu"),
    Activation("fatrelu", 0.5),
    Activation("relu2"),
    Activation("relu", on_up=True),
    Activation("fatrelu", 0.5, on_up=True),
]

# tokens, hidden, neurons: one of each, multiples of nothing, around a vector (16), a line (32, 64) and a chunk border
SHAPES = [(1, 1, 1), (1, 33, 17), (2, 100, 77), (5, 64, 128), (16, 31, 50), (1, 130, 513), (3, 16, 530), (1, 288, 1025)]


@dataclass(frozen=True, eq=False)
class Case:
    """One FFN and its input."""

    x: Tensor
    gate: Weight
    up: Weight
    down: Weight

    @property
    def weights(self) -> tuple[Weight, Weight, Weight]:
        return self.gate, self.up, self.down


def make_case(
    tokens: int,
    hidden: int,
    neurons: int,
    weights: torch.dtype = torch.bfloat16,
    x: torch.dtype = torch.float32,
    seed: int = 0,
    padding: int = 0,
) -> Case:
    """Normal x, weights of variance 1 / hidden; `padding` columns of NaN follow every row of the weights."""
    rng = torch.Generator().manual_seed(seed)

    def weight() -> Weight:
        wide = torch.full((neurons, hidden + padding), float("nan"), dtype=weights)
        wide[:, :hidden] = torch.randn(neurons, hidden, generator=rng) / hidden**0.5
        return Weight(wide[:, :hidden])

    return Case(torch.randn(tokens, hidden, generator=rng).to(x), weight(), weight(), weight())


def listed(active: ActiveNeurons) -> tuple[Tensor, Tensor]:
    """The valid part of a list: ids [count] and values [tokens, count]."""
    assert active.value is not None
    count = int(active.count)
    return active.index[:count].long(), active.value[:, :count]


def open_mask(case: Case, activation: Activation) -> Tensor:
    """[tokens, neurons]: which neurons the running backend opens for which token."""
    ids, value = listed(gate_select(case.x, case.gate, activation))
    mask = torch.zeros(case.x.shape[0], case.gate.shape[0], dtype=torch.bool)
    mask[:, ids] = value != 0
    return mask


def pre_activation(case: Case) -> Bounded:
    return Bounded.exact(case.x) @ case.gate.codes.T


def gate_meaning(case: Case, activation: Activation, mask: Tensor | None) -> Bounded:
    """act(gate x) on a given active set; the set is not used by silu."""
    g = pre_activation(case)
    if mask is None:
        return g.silu()
    return (g * g if activation.kind == "relu2" else g).where(mask)


def ffn_meaning(case: Case, activation: Activation, mask: Tensor | None) -> Bounded:
    """The whole FFN in float64 on a given active set."""
    u = Bounded.exact(case.x) @ case.up.codes.T
    h = gate_meaning(case, activation, mask) * (u.relu() if activation.on_up else u)
    if mask is not None:
        h = h.where(mask)
    return h @ case.down.codes


def assert_set_is_right(case: Case, activation: Activation, mask: Tensor) -> None:
    """FATReLU jumps at t, so rounding may flip a neuron: only those within their rounding bound of the threshold."""
    g = pre_activation(case)
    differs = mask != ~(g.value < activation.threshold if activation.threshold else g.value <= 0)
    distance = (g.value - activation.threshold).abs()
    assert bool((distance[differs] <= g.error[differs]).all()), f"{activation}: wrong active set"


def poison_allocator() -> None:
    """Fill blocks of every small size with NaN and free them, so that an output left unwritten shows."""
    blocks = [torch.full((n,), float("nan")) for n in range(1, 2048, 16) for _ in range(2)]
    del blocks
