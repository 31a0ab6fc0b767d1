"""Memory of this process, for tests that watch it."""

from __future__ import annotations

from pathlib import Path


def anonymous_bytes() -> int:
    """Bytes of this process's memory that are no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Anonymous")).split()[1]) * 1024
