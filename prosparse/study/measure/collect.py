"""Watches the FFNs of a model while it reads, and adds up which neurons are active.

A window's sets of active neurons are kept as bits until the window is complete; nothing else grows with the text.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from .bits import Array, count_near_zero, join_pairs, nonzero, pack, per_neuron, sizes
from .counts import RATIO_BITS, UNION_SIZES, Counts

Predictor = Callable[[int, Tensor], Tensor]
MAX_POSITIONS = 64  # of a window, at which windows are joined


class Collector:
    """Counts for one pass.

    Args:
        counts: what is added to.
        near_zero: |act(gate)| below this is near zero.
        predictor: called with (layer, normed input [tokens, hidden]); returns which neurons it takes for active,
            [tokens, neurons] bool.
    """

    def __init__(self, counts: Counts, near_zero: float, predictor: Predictor | None = None) -> None:
        self.counts, self.near_zero, self.predictor = counts, near_zero, predictor
        # the last positions of equal stretches: the first token of a window is like no other
        stride = -(-counts.window // MAX_POSITIONS)
        self._positions = np.arange(stride - 1, counts.window, stride)
        self._bits: list[list[Array]] = [[] for _ in range(counts.layers)]
        self._gates: list[list[Array]] = [[] for _ in range(counts.layers)]
        self.waiting: dict[int, Array] = {}  # level: union of 2^level windows, [layers, positions, words]

    def view(self, layer: int, x: Tensor, value: Tensor, h: Tensor) -> None:
        """One call of one FFN, on the next tokens of the windows being read.

        Args:
            x: its normed input, [windows, tokens, hidden].
            value: act(gate), [windows, tokens, neurons].
            h: what enters down, act(gate) * up, of the same shape.
        """
        counts, windows = self.counts, len(h)
        active = nonzero(h)
        flat = active.reshape(-1, active.shape[-1])
        counts.active[layer] += per_neuron(flat)
        self._bits[layer].append(pack(active))
        self._gates[layer].append(self._bits[layer][-1] if value is h else pack(nonzero(value)))
        counts.near_zero[layer] += count_near_zero(value, self.near_zero)
        if self.predictor is not None:
            chosen = nonzero(self.predictor(layer, x.reshape(len(flat), -1)))
            counts.predicted[layer] += np.count_nonzero(chosen)
            counts.found[layer] += np.count_nonzero(chosen & flat)
        assert windows == len(self._bits[layer][0]), "an FFN saw another number of windows than before"

    def finish(self) -> None:
        """The windows being read are complete."""
        read = 0
        joined = []
        for layer, parts in enumerate(self._bits):
            bits = np.concatenate(parts, axis=1)
            self._add_layer(layer, bits, np.concatenate(self._gates[layer], axis=1))
            joined.append(bits[:, self._positions])
            read = len(bits)
            parts.clear()
            self._gates[layer].clear()
        self.counts.windows += read
        for window in np.stack(joined, axis=1):
            self._join(window)

    def start_group(self) -> None:
        """The next window is the first of a group: unions with those before it are left."""
        self.waiting.clear()

    def _add_layer(self, layer: int, bits: Array, gates: Array) -> None:
        counts = self.counts
        size = sizes(bits)
        counts.nonzero_at[layer] += size.sum(axis=0)
        counts.gate_open_at[layer] += sizes(gates).sum(axis=0)
        before = size[:, :-1]
        both = sizes(bits[:, :-1] & bits[:, 1:])
        some = before > 0
        counts.overlap[layer] += ((both[some] << RATIO_BITS) // before[some]).sum()
        counts.overlap_pairs[layer] += np.count_nonzero(some)
        union = bits
        for i in range(len(UNION_SIZES)):
            union = join_pairs(union)
            counts.union_sequence[layer, i] += sizes(union).sum()

    def _join(self, union: Array) -> None:
        """Add a window, [layers, positions, words], to those that wait for a partner."""
        level = 0
        while level in self.waiting:
            union = union | self.waiting.pop(level)
            self.counts.union_batch[:, level] += sizes(union).sum(axis=1)
            self.counts.batches[level] += union.shape[1]
            level += 1
        if level < len(UNION_SIZES):
            self.waiting[level] = union
