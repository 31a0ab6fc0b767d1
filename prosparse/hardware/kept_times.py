"""Keeps the times of exact and dense FFNs: by machine, threads, instruction set, format, shape and version."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from prosparse.kernels import cpu

from ..config.fields import parse_json_object
from ..errors import MachineError, UserError
from ..weights.whole_files import write_whole
from .cached import cache_file, circumstances
from .crossover import Layer, Times, measure_times

log = logging.getLogger("prosparse")
SCHEMA_VERSION = 1


class KeptTimes:
    """The times of one model's FFNs, measured when they are asked for, or by an earlier run in the same circumstances.

    Args:
        layers: FFN blocks of one size and format, on the CPU.
        hidden: columns of their input.
        facts: what the times depend on beside the machine: format, sizes, layout, activation.
        measure: see `measure_times`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        hidden: int,
        facts: Mapping[str, str],
        measure: Callable[[Sequence[Layer], int, int], Times] = measure_times,
    ) -> None:
        self._layers, self._hidden, self._facts, self._measure = layers, hidden, dict(facts), measure
        self._known: dict[Path, Times | None] = {}
        self._paths: dict[tuple[int, int, str], Path] = {}  # finding out the circumstances takes a millisecond

    def known(self, rows: int) -> Times | None:
        """Of steps of so many tokens, where that was measured before; None where it was not."""
        path = self._path(rows)
        if path not in self._known:
            self._known[path] = _read(path)
        return self._known[path]

    def measured(self, rows: int) -> Times:
        """Of steps of so many tokens, measured now where that was not done before."""
        path = self._path(rows)
        found = self.known(rows)
        if found is None:
            log.info("timing exact and dense FFNs of this model, once, about a second (%s keeps the result)", path)
            found = self._known[path] = self._measure(self._layers, self._hidden, rows)
            _write(path, found)
        return found

    def _path(self, rows: int) -> Path:
        key = rows, torch.get_num_threads(), cpu.isa()  # what may change while a process runs
        if key not in self._paths:
            self._paths[key] = cache_file({**circumstances(), **self._facts, "rows": str(rows)}, "times")
        return self._paths[key]


def _read(path: Path) -> Times | None:
    try:
        if not path.is_file():
            return None
        data = parse_json_object(path.read_text(encoding="utf-8"), str(path), UserError)
        if data.pop("schema_version", None) != SCHEMA_VERSION:
            raise UserError(f"{path}: schema_version is not {SCHEMA_VERSION}")
        return Times(**{name: tuple(column) for name, column in data.items()})
    except (UserError, OSError, UnicodeDecodeError, TypeError) as fault:
        log.warning("cache: %s holds no times (%s); they are measured again", path, fault)
        return None


def _write(path: Path, times: Times) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(times)}, indent=1)
    try:
        write_whole({path: text.encode()})
    except MachineError as fault:
        log.warning("cache: %s; PROSPARSE_CACHE names another folder, without it this is measured again", fault)
