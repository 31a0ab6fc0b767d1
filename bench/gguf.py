"""Writes a model's matrices as a GGUF file, so that llama.cpp can be timed on the same sizes and formats.

GGUF 3: magic, counts, key-value pairs, tensor directory, tensors at multiples of 32 bytes, all little-endian. The
tokenizer is left out. llama.cpp's 8- and 4-bit blocks hold 32 weights of a row with one fp16 scale.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prosparse.errors import MachineError

ALIGNMENT, BLOCK = 32, 32
UINT32, FLOAT32, STRING = 4, 6, 8  # types of values
KINDS = {"fp32": (0, "F32"), "fp16": (1, "F16"), "int4": (2, "Q4_0"), "int8": (8, "Q8_0"), "bf16": (30, "BF16")}
FLOAT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    Args:
        name: llama.cpp's.
        shape: (rows, columns) or (columns,).
        fmt: weight format.
        values: makes it, float32; called when it is written, so that one at a time is in memory.
    """

    name: str
    shape: tuple[int, ...]
    fmt: str
    values: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        numel = math.prod(self.shape)
        if self.fmt in FLOAT_DTYPES:
            return numel * FLOAT_DTYPES[self.fmt].itemsize
        return numel // BLOCK * (2 + (BLOCK if self.fmt == "int8" else BLOCK // 2))


def write_gguf(path: Path, metadata: Sequence[tuple[str, Any]], entries: Sequence[Entry]) -> None:
    """Write a file.

    Args:
        path: where.
        metadata: keys with values of type str, int or float.
        entries: the tensors.

    Raises:
        MachineError: it cannot be written.
    """
    directory, offset = b"", 0
    for entry in entries:
        sizes = entry.shape[::-1]  # the fastest dimension first
        directory += _string(entry.name) + struct.pack(
            f"<I{len(sizes)}QIQ", len(sizes), *sizes, KINDS[entry.fmt][0], offset
        )
        offset += -(-entry.nbytes // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata) + directory
    try:
        with path.open("wb") as file:
            file.write(head + bytes(-len(head) % ALIGNMENT))
            for entry in entries:
                data = encode(entry.values(), entry.fmt)
                file.write(data + bytes(-len(data) % ALIGNMENT))
    except OSError as fault:
        raise MachineError(f"{path}: cannot write the file for llama.cpp ({fault.strerror}); set TMPDIR") from fault


def encode(values: Tensor, fmt: str) -> bytes:
    """Bytes of values [..., columns] float32 in a format; packed ones need columns that are a multiple of 32."""
    if fmt in FLOAT_DTYPES:
        return values.to(FLOAT_DTYPES[fmt]).contiguous().view(torch.uint8).numpy().tobytes()
    blocks = values.float().reshape(-1, BLOCK)
    if fmt == "int8":
        scale = blocks.abs().amax(1, keepdim=True) / 127
        codes = (blocks / scale.clamp_min(1e-30)).round().to(torch.int8).view(torch.uint8)
    else:  # the number of the largest size becomes -8; weight j and j + 16 share a byte
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = largest / -8
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        nibbles = (blocks * inverse + 8.5).floor().clamp(0, 15).to(torch.uint8)
        codes = nibbles[:, : BLOCK // 2] | nibbles[:, BLOCK // 2 :] << 4
    return torch.cat([scale.half().view(torch.uint8), codes], dim=1).numpy().tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    return struct.pack("<If", FLOAT32, value) if isinstance(value, float) else struct.pack("<II", UINT32, value)
