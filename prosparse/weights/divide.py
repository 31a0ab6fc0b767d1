"""Which rows of a model's matrices go to which of two devices, and how many bytes that makes on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prosparse.kernels.weight import bytes_per_row

from .formats import Formats
from .names import format_of, is_down, is_matrix
from .tables import Names


@dataclass(frozen=True, eq=False)
class Cut:
    """Where one layer goes.

    Args:
        gate: neurons, from the first of `order` on, whose gate row is on the fast device.
        hot: the same of rows of up and down; at most `gate`.
        attention: whether attention and norms are on the fast device; if not, all of the layer is on the other.
        order: neurons hot-first, [neurons] int64; None where the layer is whole on one device, and stays as stored.
    """

    gate: int
    hot: int
    attention: bool
    order: Tensor | None


@dataclass(frozen=True, eq=False)
class Division:
    """A model on two devices.

    Args:
        fast: the device of attention and hot neurons.
        slow: that of the rest, and of the embedding.
        layers: in order.
        head: whether lm_head is on the fast device, and with it the embedding where that is the same table.
    """

    fast: torch.device
    slow: torch.device
    layers: Sequence[Cut]
    head: bool

    def nbytes(self, names: Names, sizes: dict[str, tuple[int, ...]], formats: Formats, tied: bool) -> tuple[int, int]:
        """Bytes of the matrices on the fast and on the other device."""
        fast = slow = 0
        for name, size in sizes.items():
            if is_matrix(names, name, size):
                rows, columns = reversed(size) if is_down(names, name) else size
                near = self._rows(names, name, rows, tied)
                row = bytes_per_row(format_of(name, names, formats, tied), columns)
                fast, slow = fast + near * row, slow + (rows - near) * row
        return fast, slow

    def _rows(self, names: Names, name: str, rows: int, tied: bool) -> int:
        """Rows of a matrix on the fast device."""
        found = names.layer_number.match(name)
        if found is None:
            is_head = name == names.lm_head or (tied and name == names.embed)
            return rows if self.head and is_head else 0
        layer, n = int(found[1]), names.layer
        cut = self.layers[layer]
        if name == n.gate.format(layer, 0):
            return cut.gate
        if n.up and name in (n.up.format(layer, 0), n.down.format(layer, 0)):
            return cut.hot
        return rows if cut.attention else 0


def whole(device: torch.device, layers: int, neurons: int) -> Division:
    """All of a model on one device."""
    return Division(device, device, (Cut(neurons, neurons, True, None),) * layers, True)
