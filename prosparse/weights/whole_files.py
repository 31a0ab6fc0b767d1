"""Writing small files so that each appears whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from ..errors import MachineError


def write_whole(files: dict[Path, bytes]) -> None:
    """Write files beside their destinations, and give them their names only when all are on the disk.

    Args:
        files: contents by destination, which is replaced if it exists; its folder is made if it does not.

    Raises:
        MachineError: the disk is full or cannot be written; what was there before is unchanged.
    """
    written: list[tuple[str, Path]] = []
    at = next(iter(files))
    try:
        for at, data in files.items():
            at.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{at.name}-", dir=at.parent)
            written.append((temporary, at))
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for temporary, at in written:
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, at)
    except OSError as fault:
        why = "the disk is full" if fault.errno == errno.ENOSPC else fault.strerror
        raise MachineError(f"{at}: cannot be written: {why}; choose another destination") from fault
    finally:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)
