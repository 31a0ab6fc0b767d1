"""The folder that a conversion writes into: it outlives a process that is killed, and takes its name when it is whole.

It lies beside its destination as .NAME.converting. A shard in it has its name only when all of it is on the disk, and
its manifest says from which files and with which options it is made. The same conversion started again finds the
shards that are done; another one starts over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import MachineError, UserError
from .output import check_space, disk_faults, move

MANIFEST = "manifest.json"
SHARDS = "*.safetensors"
log = logging.getLogger("prosparse")


def fingerprint(source: Path, **options: object) -> str:
    """Names what a conversion makes: its source's files by name, size and time of change, and its options."""
    stats = {path.name: path.stat() for path in sorted(source.iterdir()) if path.is_file()}
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    return hashlib.sha256(json.dumps([str(source.resolve()), files, options]).encode()).hexdigest()


@contextmanager
def work_folder(op: str, target: Path, nbytes: int, made_of: str) -> Iterator[Path]:
    """A folder that becomes `target` if the block succeeds.

    If it does not, the folder stays as long as it holds a finished shard, unless the input is at fault.

    Args:
        op: named in errors.
        target: absolute; replaced if it exists.
        nbytes: of all shards; the disk must have those free that are not there yet.
        made_of: a `fingerprint`.

    Raises:
        MachineError: the disk is full or cannot be written, or another process writes the same target.
    """
    work = target.parent / f".{target.name}.converting"
    with disk_faults(op, target):
        work.mkdir(parents=True, exist_ok=True)
        with (work / MANIFEST).open("a+b") as manifest:
            try:
                fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the file, however the process ends
            except BlockingIOError:
                raise MachineError(f"{op}: another process is writing {target}; wait for it to end") from None
            try:
                _continue_or_clear(op, work, manifest, made_of)
                check_space(op, target, nbytes - sum(path.stat().st_size for path in work.glob(SHARDS)))
                yield work
                (work / MANIFEST).unlink()
                move(work, target)
            except BaseException as fault:
                _leave(op, work, isinstance(fault, UserError))
                raise


def _continue_or_clear(op: str, work: Path, manifest: BinaryIO, made_of: str) -> None:
    manifest.seek(0)
    if manifest.read() == made_of.encode():
        if done := len(list(work.glob(SHARDS))):
            log.info("%s: %s holds %d finished shards of the same conversion; it goes on from there", op, work, done)
        return
    for path in work.iterdir():
        if path.name != MANIFEST:
            path.unlink()
    manifest.truncate(0)
    manifest.write(made_of.encode())
    manifest.flush()


def _leave(op: str, work: Path, input_is_wrong: bool) -> None:
    done = len(list(work.glob(SHARDS)))
    if done and not input_is_wrong and (work / MANIFEST).exists():
        log.warning("%s: stopped; %s keeps the %d finished shards, and the same command goes on", op, work, done)
    else:
        shutil.rmtree(work, ignore_errors=True)
