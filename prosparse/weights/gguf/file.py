"""The GGUF container, versions 2 and 3, and PowerInfer's variant of it: what a file says and where its tensors lie.

    magic "GGUF" or "PWRI" | version u32 | tensors u64 | keys u64 | keys and values | names, sizes, types, offsets of
    the tensors | padding | data, every tensor at a multiple of general.alignment

PowerInfer writes an ordinary GGUF file and then puts its own magic in place of the first four bytes. A file is checked
whole before a byte of it is mapped: a count, a length or an offset that leads out of it is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import CheckpointError, MissingFileError, UnsupportedError
from .kinds import KINDS, OTHERS, WEIGHTS, Kind

MAGICS = {b"GGUF": "GGUF", b"PWRI": "PowerInfer"}
VERSIONS = (2, 3)
ADVICE = "; the file is damaged: download it again"
CUT = "; download it again"
MAX_HEADER_BYTES = 100 * 10**6  # keys and tensor names; a vocabulary of 256 000 tokens and its merges takes 12 MB
MAX_ITEMS = 2**22  # of an array
MAX_NAME = 512  # bytes of a key or of a tensor's name
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Args:
        shape: rows first, as PyTorch has it; the file has the columns first.
        kind: how its values are stored.
        start, nbytes: where, in bytes of the file.
    """

    shape: tuple[int, ...]
    kind: Kind
    start: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What the header of a file says.

    Args:
        path: the file.
        variant: a value of `MAGICS`.
        metadata: values by key.
        tensors: by name, in the order of the file.
        nbytes: size of the file.
    """

    path: Path
    variant: str
    metadata: dict[str, Any]
    tensors: dict[str, Stored]
    nbytes: int


def looks_like_gguf(path: Path) -> bool:
    """By its name or its first bytes."""
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) in MAGICS


def read_gguf(path: str | Path) -> GgufFile:
    """Read and check the header of a file.

    Raises:
        MissingFileError: no such file.
        CheckpointError: no GGUF file, or one that is cut off or contradicts itself.
        UnsupportedError: a version, byte order or type of tensor that is not read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder, expected a GGUF file")
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Cursor(file, path, size))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as fault:
        raise CheckpointError(f"{path}: cannot be read: {fault.strerror}; check its permissions") from None


class _Cursor:
    """Reads a file from its start, and no byte beyond its end or that of the longest header."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size, self.at = file, path, size, 0

    def take(self, count: int, what: str) -> bytes:
        if self.at + count > min(self.size, MAX_HEADER_BYTES):
            if self.at + count > self.size:
                raise self.wrong(f"cut off: {what} needs {count} bytes at byte {self.at} of {self.size}", CUT)
            raise self.wrong(f"its keys and names take more than {MAX_HEADER_BYTES} bytes, at {what}")
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"{self.path}: changed while it was being read; load the model again")
        self.at += count
        return data

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str, longest: int = MAX_HEADER_BYTES) -> str:
        length = self.number("Q", what)
        if length > longest:
            raise self.wrong(f"{what} would have {length} bytes, expected at most {longest}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8 text") from None

    def wrong(self, what: str, advice: str = ADVICE) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}{advice}")


def _read(cursor: _Cursor) -> GgufFile:
    magic = cursor.take(4, "the magic") if cursor.size >= 4 else b""
    if magic not in MAGICS:
        raise cursor.wrong(f"no GGUF file: it begins with {magic!r}, expected {' or '.join(map(repr, MAGICS))}", CUT)
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = f"big-endian version {swapped}" if swapped in VERSIONS else f"version {version}"
        raise UnsupportedError(
            f"{cursor.path}: GGUF of {what}; little-endian versions {' and '.join(map(str, VERSIONS))} are read: "
            "convert the original model again"
        )
    tensors, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    for count, least, what in ((tensors, 24, "tensors"), (keys, 13, "keys")):
        if count * least > cursor.size:
            raise cursor.wrong(f"says it has {count} {what}, more than fit into its {cursor.size} bytes")
    metadata = dict(_unique(cursor, "key", (_key(cursor) for _ in range(keys))))
    alignment = metadata.get("general.alignment", 32)
    is_power = type(alignment) is int and 8 <= alignment <= 2**16 and alignment & (alignment - 1) == 0
    if not is_power:
        raise cursor.wrong(f"general.alignment must be a power of two from 8 to 65536, got {alignment!r}")
    infos = dict(_unique(cursor, "tensor", (_info(cursor, alignment) for _ in range(tensors))))
    begin = _aligned(cursor.at, alignment)
    stored = {name: Stored(info.shape, info.kind, begin + info.start, info.nbytes) for name, info in infos.items()}
    _check_places(cursor, stored, begin, alignment)
    return GgufFile(cursor.path, MAGICS[magic], metadata, stored, cursor.size)


def _unique(cursor: _Cursor, what: str, pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for name, value in pairs:
        if name in seen:
            raise cursor.wrong(f"{what} {name!r} appears twice")
        seen.add(name)
        yield name, value


def _key(cursor: _Cursor) -> tuple[str, Any]:
    name = cursor.text("the name of a key", MAX_NAME)
    return name, _value(cursor, cursor.number("I", name), name)


def _value(cursor: _Cursor, kind: int, name: str) -> Any:
    if kind == STRING:
        return cursor.text(name)
    if kind in SCALARS:
        return _scalars(cursor, kind, 1, name)[0]
    if kind != ARRAY:
        raise cursor.wrong(f"{name} is of type {kind}, expected 0 to 12")
    kind, count = cursor.number("I", name), cursor.number("Q", name)
    if kind != STRING and kind not in SCALARS:
        raise cursor.wrong(f"{name} is an array of type {kind}, expected numbers, booleans or texts")
    if count > MAX_ITEMS:
        raise cursor.wrong(f"{name} would have {count} items, expected at most {MAX_ITEMS}")
    if kind == STRING:
        return [cursor.text(name) for _ in range(count)]
    return _scalars(cursor, kind, count, name)


def _scalars(cursor: _Cursor, kind: int, count: int, name: str) -> list[Any]:
    code = f"<{count}{SCALARS[kind]}"
    data = cursor.take(struct.calcsize(code), name)
    if SCALARS[kind] == "?" and not set(data) <= {0, 1}:
        raise cursor.wrong(f"{name} holds a boolean that is neither 0 nor 1")
    return list(struct.unpack(code, data))


def _info(cursor: _Cursor, alignment: int) -> tuple[str, Stored]:
    name = cursor.text("the name of a tensor", MAX_NAME)
    dims = cursor.number("I", name)
    if not 1 <= dims <= 4:
        raise cursor.wrong(f"{name} has {dims} dimensions, expected 1 to 4")
    sizes = [cursor.number("Q", name) for _ in range(dims)]
    number, start = cursor.number("I", name), cursor.number("Q", name)
    kind = KINDS.get(number)
    if kind is None:
        if number not in OTHERS:
            raise cursor.wrong(f"{name} is of type {number}, which is no type of GGUF")
        raise UnsupportedError(
            f"{cursor.path}: {name} is {OTHERS[number]}; {', '.join(WEIGHTS)} are read: use a file of one of these, or "
            "the original model in safetensors"
        )
    shape = tuple(reversed(sizes))
    least = 0 if kind.format is None else 1  # a list of neurons may be empty
    if not all(least <= size < 2**31 for size in sizes) or sizes[0] % kind.block:
        raise cursor.wrong(
            f"{name} is {list(shape)}, expected sizes from {least} to 2^31 - 1"
            + (f", rows of a multiple of {kind.block} as {kind.name}" if kind.block > 1 else "")
        )
    if start % alignment:
        raise cursor.wrong(f"{name} starts at byte {start} of the data, expected a multiple of {alignment}")
    return name, Stored(shape, kind, start, prod(shape) // kind.block * kind.nbytes)


def _check_places(cursor: _Cursor, tensors: dict[str, Stored], begin: int, alignment: int) -> None:
    end = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        expected = _aligned(end, alignment)
        if tensor.start != expected:
            what = "overlaps the tensor before it" if tensor.start < expected else "leaves a gap before it"
            raise cursor.wrong(f"{name} {what} (starts at byte {tensor.start}, expected {expected})")
        end = tensor.start + tensor.nbytes
        if end > cursor.size:
            raise cursor.wrong(f"cut off: {name} ends at byte {end}, the file has {cursor.size}", CUT)
    if cursor.size > _aligned(end, alignment):
        raise cursor.wrong(f"{cursor.size - end} bytes follow the last tensor")


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
