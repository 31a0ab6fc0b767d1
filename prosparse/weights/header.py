"""The header of a safetensors file, checked against the file before anything is mapped or allocated.

    8 bytes: length n, little-endian | n bytes: JSON {name: {dtype, shape, data_offsets}} | data

Offsets count from the end of the header. Tensors must cover the data without a gap or an overlap, so that a header
cannot promise more than the file holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..config.fields import parse_json_object, show
from ..errors import CheckpointError, MissingFileError

MAX_HEADER_BYTES = 100 * 10**6  # the limit of the safetensors library itself
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
ADVICE = "; the file is damaged: download it again"
# What people have in place of weights when a download went wrong
IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights; run `git lfs pull` in the folder",
    b"<": "a web page, not the weights; download the file again",
    b"PK\x03\x04": "a PyTorch file with another name; rename it to .bin and run `prosparse convert`",
    b"GGUF": "a GGUF file with another name; give prosparse that file itself",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its dtype, shape, and first and past-the-last byte after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file.

    Raises:
        MissingFileError: no such file.
        CheckpointError: the file is no safetensors file, is cut off, or contradicts itself.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder, expected a safetensors file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            if size < 8:
                raise CheckpointError(f"{path}: {size} bytes, too short for a safetensors file; download it again")
            for magic, what in IMPOSTORS.items():
                # a true header has its brace at byte 8, and may by chance begin with any of these bytes
                if start[8:9] != b"{" and start.lstrip().startswith(magic):
                    raise CheckpointError(f"{path}: is {what}")
            length = int.from_bytes(start[:8], "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path}: no safetensors file: its header would have {length} bytes, above {MAX_HEADER_BYTES}"
                )
            if 8 + length > size:
                raise CheckpointError(
                    f"{path}: cut off inside its header ({size} bytes, the header alone needs {8 + length}); "
                    "download it again"
                )
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as fault:
        raise CheckpointError(f"{path}: cannot be read: {fault.strerror}; check its permissions") from None
    try:
        header = parse_json_object(text.decode("utf-8"), f"{path}: header", CheckpointError)
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: header is not UTF-8 text; this is no safetensors file") from None
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(entry, f"{path}: {name}") for name, entry in header.items()}
    _check_coverage(path, tensors, size - 8 - length)
    return tensors


def _tensor_info(entry: Any, where: str) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets, got {show(entry)}{ADVICE}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {show(dtype)} is not known; known are {', '.join(DTYPES)}")
    if not _is_sizes(shape) or len(shape) > 8:
        raise CheckpointError(f"{where}: shape must be a list of at most 8 sizes, got {show(shape)}{ADVICE}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be [start, end], got {show(offsets)}{ADVICE}")
    info = TensorInfo(DTYPES[dtype], tuple(shape), offsets[0], offsets[1])
    needed = prod(info.shape) * info.dtype.itemsize
    if info.end - info.start != needed:
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} needs {show(needed)} bytes, data_offsets span "
            f"{info.end - info.start}{ADVICE}"
        )
    return info


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_coverage(path: Path, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    covered = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != covered:
            what = "overlaps the tensor before it" if info.start < covered else "leaves a gap before it"
            raise CheckpointError(f"{path}: {name} {what} (starts at byte {info.start}, expected {covered}){ADVICE}")
        covered = info.end
    if covered > data_bytes:
        raise CheckpointError(
            f"{path}: cut off: its tensors need {covered} bytes, the file holds {data_bytes} of them; download it again"
        )
    if covered < data_bytes:
        raise CheckpointError(f"{path}: {data_bytes - covered} bytes follow the last tensor{ADVICE}")
