"""Sets of active neurons as bits, 64 to a word: small enough to keep for a window, and quick to join and count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
WORD = 64
ROWS = 128  # tokens whose counts are added in 8 bits


def nonzero(values: Tensor) -> Array:
    """Where values are not zero, NaN included: same shape, bool, on the CPU."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float16, torch.float64):
        # Not torch's own comparison: it waits for all its threads, which takes longer than the work of one.
        return values.detach().numpy() != 0
    return (values != 0).cpu().numpy()


def count_near_zero(values: Tensor, limit: float) -> int:
    """How many |values| are below a limit; NaN is not."""
    if limit == 0:
        return 0
    found = values.detach().cpu()
    numbers = (found if found.dtype in (torch.float32, torch.float64) else found.float()).numpy()
    return int(np.count_nonzero(numbers < limit)) - int(np.count_nonzero(numbers <= -limit))


def pack(active: Array) -> Array:
    """[..., neurons] bool to [..., words] uint64; bits past the last neuron are 0."""
    packed = np.packbits(active, axis=-1)
    missing = -packed.shape[-1] % (WORD // 8)
    if missing:
        packed = np.concatenate([packed, np.zeros((*packed.shape[:-1], missing), np.uint8)], axis=-1)
    return packed.view(np.uint64)


def sizes(packed: Array) -> Array:
    """How many neurons each set holds: [..., words] uint64 to [...] int64."""
    return np.bitwise_count(packed).sum(axis=-1, dtype=np.int64)


def per_neuron(active: Array) -> Array:
    """In how many rows each neuron is active: [rows, neurons] bool to [neurons] int64."""
    total = np.zeros(active.shape[1], np.int64)
    for start in range(0, len(active), ROWS):
        total += active[start : start + ROWS].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return total


def join_pairs(packed: Array) -> Array:
    """Unions of neighbours, [sequences, sets, words] to [sequences, sets // 2, words]; an odd last one is left."""
    even = packed.shape[1] // 2 * 2
    return packed[:, 0:even:2] | packed[:, 1:even:2]
