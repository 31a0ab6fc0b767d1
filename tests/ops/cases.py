"""Inputs of the op tests, and the float64 meaning of an FFN on the active set that the op itself chose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from closeness import Bounded
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.quant import GROUP, code_bytes, groups
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PACKED = [torch.int8, torch.uint8]  # of formats int8 and int4
SPARSE = [
    Activation("relu"),
    Activation("fatrelu", 0.5),
    Activation("relu2"),
    Activation("relu", on_up=True),
    Activation("fatrelu", 0.5, on_up=True),
]

# tokens, hidden, neurons: one of each, multiples of nothing, around a vector (16), a line (32, 64) and a chunk border
SHAPES = [(1, 1, 1), (1, 33, 17), (2, 100, 77), (5, 64, 128), (16, 31, 50), (1, 130, 513), (3, 16, 530), (1, 288, 1025)]

# The same for packed rows: one column, around a group of int4 (32), around a group of int8 and a block (128), and one
# to three groups of int4 in a block that is not full, behind full ones and alone.
PACKED_SHAPES = [
    (1, 1, 1),
    (2, 31, 17),
    (1, 32, 40),
    (3, 33, 50),
    (16, 96, 33),
    (5, 127, 64),
    (1, 128, 513),
    (2, 129, 77),
    (7, 160, 31),
    (1, 190, 100),
    (4, 224, 20),
    (1, 288, 1025),
]
LAYERS = [
    *((torch.bfloat16, shape) for shape in SHAPES),
    *((weights, shape) for weights in PACKED for shape in PACKED_SHAPES),
]
# Packed rows meet every shape once, and every activation several times.
FFNS = [
    *((torch.bfloat16, shape, activation) for shape in SHAPES for activation in SPARSE),
    *((weights, shape, SPARSE[i % 5]) for weights in PACKED for i, shape in enumerate(PACKED_SHAPES)),
]


def label(value: object) -> str:
    """Name of a parameter: the format for a dtype, as it prints for anything else."""
    return FORMAT_OF_DTYPE[value] if isinstance(value, torch.dtype) else str(value)


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
    shift: float = 0.0,
    bundled: bool = False,
) -> Case:
    """Normal x, weights of variance 1 / hidden, in the format that the dtype names.

    `padding` elements that must not be read follow every row. `shift` moves every pre-activation of a token alike.
    `bundled` lays the up and the down row of a neuron side by side.
    """
    rng = torch.Generator().manual_seed(seed)
    token = torch.randn(tokens, hidden, generator=rng)
    gate, up, down = (torch.randn(neurons, hidden, generator=rng) / hidden**0.5 for _ in range(3))
    gate += shift * token.mean(0) / token.mean(0).norm() / hidden**0.5
    gate, up, down = (in_format(matrix, FORMAT_OF_DTYPE[weights]) for matrix in (gate, up, down))
    up, down = apart([up, down], padding) if bundled else (*apart([up], padding), *apart([down], padding))
    return Case(token.to(x), *apart([gate], padding), up, down)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Bytes of ones: NaN in every float format, and in a scale of the packed ones."""
    return torch.full((*shape[:-1], shape[-1] * dtype.itemsize), 255, dtype=torch.uint8).view(dtype)


def apart(weights: list[Weight], padding: int) -> list[Weight]:
    """The same weights, row i of one beside row i of the next, and after each `padding` elements not to be read."""
    rows, length = weights[0].codes.shape
    memory = poisoned(rows, len(weights), length + padding, dtype=weights[0].codes.dtype)
    for place, weight in enumerate(weights):
        memory[:, place, :length] = weight.codes
    return [Weight(memory[:, i, :length], weight.packed_columns) for i, weight in enumerate(weights)]


def make_infinite(weight: Weight, row: int) -> None:
    """Spoil a row, in its values or in its scales."""
    if weight.is_packed:
        end = code_bytes(weight.format, weight.shape[1])
        scales = weight.codes[row].view(torch.uint8)[end : end + 2 * groups(weight.format, weight.shape[1])]
        scales.view(torch.bfloat16).fill_(float("inf"))
    else:
        weight.codes[row] = float("inf")


def as_read(x: Tensor, weight: Weight) -> Bounded:
    """x as a kernel multiplies it with this weight; the reference and floats keep closer to it than packed rows do."""
    return Bounded.fixed_point(x, GROUP[weight.format]) if weight.is_packed else Bounded.exact(x)


def product(x: Tensor, weight: Weight) -> Bounded:
    """weight x of every token: [tokens, rows]."""
    return as_read(x, weight) @ weight.values().T


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
    return product(case.x, case.gate)


def gate_meaning(case: Case, activation: Activation, mask: Tensor | None) -> Bounded:
    """act(gate x) on a given active set; the set is not used by silu."""
    g = pre_activation(case)
    if mask is None:
        return g.silu()
    return (g * g if activation.kind == "relu2" else g).where(mask)


def ffn_meaning(case: Case, activation: Activation, mask: Tensor | None) -> Bounded:
    """The whole FFN in float64 on a given active set."""
    u = product(case.x, case.up)
    h = gate_meaning(case, activation, mask) * (u.relu() if activation.on_up else u)
    if mask is not None:
        h = h.where(mask)
    return h @ case.down.values()


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
