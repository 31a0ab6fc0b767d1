"""Rows in files: one JSON object a line, appended to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from prosparse.errors import MachineError, MissingFileError, UserError

from .row import Row


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


def read_rows(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        MissingFileError: it cannot be read.
        UserError: it holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise MissingFileError(f"{path}: cannot read the rows ({fault}); check the path") from fault
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or "subject" not in row:
            raise UserError(f"{path}: line {number} is no benchmark row; give a file that `prosparse.bench -o` wrote")
        rows.append(row)
    return rows
