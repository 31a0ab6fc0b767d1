"""Writing safetensors files tensor by tensor, so that memory never holds more than one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .header import DTYPES

NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: name, shape, dtype, and what makes it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    produce: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, entries: list[Entry], written: Callable[[int], None]) -> None:
    """Write one file and wait until it is on the disk.

    Args:
        path: replaced if it exists.
        entries: in the order of the file.
        written: called with the bytes of each tensor once it is written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {
            "dtype": NAME_OF_DTYPE[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.produce().contiguous()
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
            written(entry.nbytes)
        file.flush()
        os.fsync(file.fileno())


def split_shards(entries: list[Entry], limit_bytes: int) -> list[list[Entry]]:
    """Entries dealt in order into shards of at most `limit_bytes`; a larger tensor gets a shard of its own."""
    shards: list[list[Entry]] = []
    filled = 0
    for entry in entries:
        if not shards or filled + entry.nbytes > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    return shards
