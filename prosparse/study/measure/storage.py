"""Counts on the disk: how a pass goes on after it was killed, and how shares come together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...errors import MissingFileError, UserError
from ...weights.header import read_header
from ...weights.whole_files import write_whole
from .bits import Array
from .counts import Counts

FORMAT, SCHEMA_VERSION = "prosparse.counts", 1
WAITING = "waiting."


def pack_counts(counts: Counts, header: dict[str, Any], waiting: dict[int, Array] | None = None) -> bytes:
    """A safetensors file with the sums, what they are of, and the unions that wait for a partner."""
    arrays = {**counts.arrays(), **{f"{WAITING}{level}": union for level, union in (waiting or {}).items()}}
    text = json.dumps({"schema_version": SCHEMA_VERSION, **header})
    # one key of metadata: the library writes several in any order, and equal counts should be equal files
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {FORMAT: text})


def write_counts(path: Path, counts: Counts, header: dict[str, Any], waiting: dict[int, Array] | None = None) -> None:
    """Write the file whole or not at all. Raises MachineError where that fails."""
    write_whole({path: pack_counts(counts, header, waiting)})


def read_counts(path: Path) -> tuple[Counts, dict[str, Any], dict[int, Array]]:
    """What `pack_counts` was given.

    Raises:
        MissingFileError: no such file.
        UserError: it is damaged, holds something else, or is of another schema version.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; expected what `prosparse measure -o` writes")
    read_header(path)
    try:
        with safe_open(path, "np") as file:
            found = file.metadata() or {}
            if FORMAT not in found:
                raise UserError(f"{path}: holds no counts of `prosparse measure`; give a folder that it wrote")
            header = json.loads(found[FORMAT])
            version = header.pop("schema_version")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}; measure again")
        waiting = {
            int(name.removeprefix(WAITING)): arrays.pop(name) for name in list(arrays) if name.startswith(WAITING)
        }
        return Counts(**arrays), header, waiting
    except (KeyError, TypeError, ValueError, SafetensorError) as fault:
        if isinstance(fault, UserError):
            raise
        raise UserError(f"{path}: damaged ({type(fault).__name__}: {fault}); measure again") from fault
