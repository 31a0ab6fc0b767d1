"""Keeps what was measured of this machine, since that takes seconds and seldom changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import torch

from prosparse.kernels import cpu, triton

from .. import __version__
from .. import machine as this
from ..errors import MachineError, UserError
from ..weights.whole_files import write_whole
from .description import Machine
from .measure import gpu_memory, load_libraries, measure_machine

log = logging.getLogger("prosparse")


def this_machine() -> Machine:
    """This machine, measured now or by an earlier run in the same circumstances; what memory is free is asked anew.

    Raises:
        MachineError: it has no GPU.
    """
    if not torch.cuda.is_available():
        return measure_machine()  # says what to do
    path = cache_file(circumstances())
    found = _read(path)
    if found is None:
        log.info("measuring this machine, once (%s keeps the result; delete it to measure again)", path)
        found = measure_machine()
        _write(path, found)
    load_libraries()
    available, context = gpu_memory()
    return dataclasses.replace(found, gpu_bytes=available, context_bytes=context)


def circumstances() -> dict[str, str]:
    """What a measurement depends on: another value makes an old one stale."""
    return {
        "processor": this.processor_name(),
        "threads": str(torch.get_num_threads()),
        "instructions": cpu.isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "kernels": str(triton.version()),
        "torch": torch.__version__,
        "prosparse": __version__,
    }


def cache_file(facts: dict[str, str], what: str = "machine") -> Path:
    """Where a measurement under these circumstances is kept."""
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return this.cache_folder() / f"{what}-{key}.json"


def _read(path: Path) -> Machine | None:
    """What is kept there; None where that is nothing, or nothing that this version reads."""
    try:
        return Machine.load(path) if path.is_file() else None
    except (UserError, OSError) as error:  # of a folder that may not be looked into
        log.info("%s; measuring again", error)
        return None


def _write(path: Path, machine: Machine) -> None:
    try:
        write_whole({path: machine.to_json().encode()})
    except MachineError as error:
        log.info("the measurement is not kept: %s", error)
