"""Runs cases and keeps their rows."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from prosparse.errors import MachineError

from .cases import Case
from .modes import Progress
from .row import Row

log = logging.getLogger("prosparse.bench")


def run_cases(cases: Mapping[str, Case], output: Path | None = None) -> tuple[list[Row], list[str]]:
    """Run cases one after the other; rows are appended to `output` as each case ends.

    Returns:
        All rows, and the names of the cases that this machine could not run, which are logged.
    """
    rows: list[Row] = []
    failed = []
    for name, case in cases.items():
        try:
            new = case(progress_line(name))
        except MachineError as error:
            log.error("%s: %s", name, error)
            failed.append(name)
            continue
        if output is not None:
            append(output, new)
        rows += new
    return rows, failed


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file of JSON lines.

    Raises:
        MachineError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise MachineError(f"{path}: cannot write the rows ({error.strerror}); check the path") from error


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
