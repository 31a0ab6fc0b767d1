"""How far a case is."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # stage, done, total


def stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """The progress of one stage, for what knows only (done, total)."""
    return None if progress is None else lambda done, total: progress(name, done, total)


def progress_line(what: str) -> Progress | None:
    """One line on stderr that says how far a case is, where that is a terminal."""
    if not sys.stderr.isatty():
        return None

    def update(stage: str, done: int, total: int) -> None:
        share = f" {done / total:.0%}" if total > 1 else ""
        sys.stderr.write(f"\r\x1b[K{what}: {stage}{share}")
        if stage == "timing" and done >= total:
            sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    return update
