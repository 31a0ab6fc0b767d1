"""Runs cases and keeps their rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from prosparse.errors import MachineError, UnsupportedError

from .cases import Case
from .files import append
from .progress import progress_line
from .row import Row

log = logging.getLogger("prosparse.bench")


def run_cases(cases: Mapping[str, Case], output: Path | None = None) -> tuple[list[Row], list[str]]:
    """Run cases one after the other; rows are appended to `output` as each case ends.

    Returns:
        All rows, and the names of the cases that this machine could not run, which are logged. A case that needs a
        package that is not installed is left out with a line, and is no failure.
    """
    rows: list[Row] = []
    failed = []
    for name, case in cases.items():
        try:
            new = case(progress=progress_line(name))
        except UnsupportedError as error:
            log.warning("%s is left out: %s", name, error)
            continue
        except MachineError as error:
            log.error("%s: %s", name, error)
            failed.append(name)
            continue
        if output is not None:
            append(output, new)
        rows += new
    return rows, failed
