"""Recorded activations of one FFN, [tokens, neurons] in a .npy file: what can be learned of them without the model.

A neuron is active where its number is not 0. The file is mapped, never read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError, MissingFileError
from .yardsticks import Yardstick, at_random, hottest, oracle, previous

MAGIC = b"\x93NUMPY", b"PK"  # one array, and several, which have a message of their own
BLOCK = 1024  # tokens at a time
UNIONS = (1, 2, 4, 8, 16)
HOT = (0.5, 0.8, 0.9, 0.99)
RANDOM = (0.1, 0.5, 0.9)
LEAST_TOKENS = 4  # half of them to count hot neurons on, half to judge


class Recording:
    """A recording on the disk.

    Args:
        path: a .npy file of real numbers or bools, [tokens, neurons], at least `LEAST_TOKENS` tokens.

    Raises:
        MissingFileError: no such file.
        CheckpointError: it is damaged, holds objects, or an array of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f"{path}: no such file; expected activations, [tokens, neurons], in a .npy file")
        with self.path.open("rb") as file:
            if not file.read(6).startswith(MAGIC):
                raise CheckpointError(
                    f"{path}: is no .npy file; give activations, [tokens, neurons], as numpy.save writes them"
                )
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as fault:
            raise CheckpointError(
                f"{path}: cannot be read as a .npy file of numbers ({str(fault).splitlines()[0]}); write it with "
                "numpy.save"
            ) from fault
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiub":
            what = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
            raise CheckpointError(f"{path}: holds {what}, expected numbers or bools, [tokens, neurons]")
        if array.shape[0] < LEAST_TOKENS or not array.shape[1]:
            raise CheckpointError(f"{path}: shape {array.shape} has too few tokens or neurons; record some pages")
        self._array = array

    @property
    def tokens(self) -> int:
        return int(self._array.shape[0])

    @property
    def neurons(self) -> int:
        return int(self._array.shape[1])

    def values(self, start: int, end: int) -> Tensor:
        """Recorded numbers of some tokens, [end - start, neurons], float32 where they are fractions.

        Raises:
            CheckpointError: NaN or infinity among them.
        """
        block = np.array(self._array[start:end])
        if block.dtype.kind == "f":
            block = block.astype(np.float32)
            if not np.isfinite(block).all():
                token = start + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise CheckpointError(f"{self.path}: token {token} holds NaN or infinity; record it again")
        return torch.from_numpy(block)

    def active(self, start: int = 0, end: int | None = None) -> Iterator[Tensor]:
        """Which neurons are active, [up to BLOCK, neurons] bool at a time."""
        end = self.tokens if end is None else end
        for begin in range(start, end, BLOCK):
            yield self.values(begin, min(begin + BLOCK, end)) != 0


def judge_recording(recording: Recording) -> dict[str, Any]:
    """Activation sparsity, unions of neighbouring tokens, and the yardsticks, as plain data.

    Hot neurons are counted on the first half, everything else is measured on the second.
    """
    half = recording.tokens // 2
    counts = torch.zeros(recording.neurons, dtype=torch.int64)
    for active in recording.active(0, half):
        counts += active.sum(0)
    yardsticks: dict[str, Yardstick] = {"oracle": oracle, "previous": previous}
    yardsticks |= {f"hot {share:g}": hottest([counts], share) for share in HOT}
    yardsticks |= {f"random {share:g}": at_random(share) for share in RANDOM}
    total = recording.tokens - half
    return {
        "recording": recording.path.name,
        "tokens": recording.tokens,
        "neurons": recording.neurons,
        "activation_sparsity": 1 - sum(int(own.sum()) for own in recording.active(half)) / (total * recording.neurons),
        "unions": {str(size): _union(recording, half, size) for size in UNIONS if size <= total},
        "points": [{"name": name} | _judged(recording, half, own) for name, own in yardsticks.items()],
    }


def _union(recording: Recording, start: int, size: int) -> float:
    """Mean share of neurons that are active for any of `size` consecutive tokens, groups side by side."""
    groups = united = 0
    for active in recording.active(start):
        whole = active[: len(active) // size * size].view(-1, size, recording.neurons)
        groups += len(whole)
        united += int(whole.any(1).sum())
    return united / max(1, groups * recording.neurons)


def _judged(recording: Recording, start: int, yardstick: Yardstick) -> dict[str, float | None]:
    found = named_count = active_count = seen = 0
    before = torch.zeros(0, recording.neurons, dtype=torch.bool)  # the last token of the block before
    for active in recording.active(start):
        named = yardstick(0, torch.cat([before, active]))[len(before) :]
        before = active[-1:]
        found += int((named & active).sum())
        named_count += int(named.sum())
        active_count += int(active.sum())
        seen += active.numel()
    return {
        "recall": found / active_count if active_count else None,
        "precision": found / named_count if named_count else None,
        "predicted_sparsity": 1 - named_count / seen,
    }
