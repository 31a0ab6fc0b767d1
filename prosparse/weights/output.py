"""Writing a model folder that appears whole or not at all: made beside its destination, renamed at the end."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, MachineError, MissingFileError, ProsparseError, UserError
from .checkpoint import INDEX, SINGLE
from .header import read_header
from .writer import Entry, split_shards, write_safetensors


def check_free(op: str, target: Path, overwrite: bool) -> None:
    """Insist that a folder may be written: it does not exist, or is a model that may be replaced.

    Raises:
        UserError: named after `op`.
    """
    if not target.exists():
        return
    if not overwrite:
        raise UserError(f"{op}: {target} exists; choose another destination, or --overwrite to replace it")
    # replacing deletes, so it must be clear that this is a model and not somebody's work
    has_weights = (target / SINGLE).exists() or (target / INDEX).exists()
    if not (target.is_dir() and (target / "config.json").exists() and has_weights):
        raise UserError(f"{op}: {target} exists and is no model folder with safetensors; it is not replaced")


@contextmanager
def new_folder(op: str, target: Path, nbytes: int) -> Iterator[Path]:
    """A folder that becomes `target` if the block succeeds, and disappears if it does not.

    Args:
        op: named in errors.
        target: absolute; replaced if it exists.
        nbytes: that will be written; the disk must have them free.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    temporary = None
    with disk_faults(op, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            check_space(op, target, nbytes)
            yield temporary
            temporary.chmod(0o755)  # mkdtemp makes it private
            move(temporary, target)
        finally:
            if temporary is not None and temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_faults(op: str, target: Path) -> Iterator[None]:
    """Turns what the disk refuses into MachineError."""
    try:
        yield
    except OSError as fault:
        if isinstance(fault, ProsparseError):
            raise
        why = "the disk is full" if fault.errno == errno.ENOSPC else fault.strerror
        raise MachineError(f"{op}: {target} cannot be written: {why}; choose another destination") from fault


def check_space(op: str, target: Path, nbytes: int) -> None:
    """Insist that the disk of a folder to be made has so many bytes free."""
    free = shutil.disk_usage(target.parent).free
    if nbytes > free:
        needed, there = f"{nbytes / 1e6:,.1f} MB", f"{free / 1e6:,.1f} MB"
        raise MachineError(f"{op}: {target} needs {needed}, its disk has {there} free; choose another destination")


def write_weights(
    folder: Path, entries: list[Entry], shard_bytes: int, progress: Callable[[int, int], None] | None
) -> None:
    """Write tensors in order into one file, or into shards with an index. A file has its name only when it is whole.

    Args:
        folder: exists; a file of these tensors that is there already is not written again.
        entries: made and written one after the other.
        shard_bytes: the most in one file.
        progress: called with (done, total) bytes written.
    """
    done, total = 0, sum(entry.nbytes for entry in entries)

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    shards = split_shards(entries, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if _holds(folder / file, shard):
            written(sum(entry.nbytes for entry in shard))
        else:
            part = folder / f"{file}.part"
            write_safetensors(part, shard, written)
            os.replace(part, folder / file)
        weight_map |= dict.fromkeys((entry.name for entry in shard), file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def _holds(path: Path, shard: list[Entry]) -> bool:
    """Whether a file is whole and holds these tensors."""
    try:
        found = read_header(path)
    except (CheckpointError, MissingFileError):
        return False
    wanted = {entry.name: (entry.dtype, entry.shape) for entry in shard}
    return {name: (info.dtype, info.shape) for name, info in found.items()} == wanted


def move(temporary: Path, target: Path) -> None:
    """Give a folder its name, in place of what has it."""
    if not target.exists():
        os.replace(temporary, target)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-old-", dir=target.parent) as old:
        os.replace(target, Path(old, "model"))
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(Path(old, "model"), target)
            raise
