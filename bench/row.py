"""A benchmark row: one JSON object that says what was measured, on what, against which floor, and how to repeat it."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from prosparse import __version__, machine

from . import probe as memory
from .clock import Timing, speedup
from .samples import pack

Row = dict[str, Any]
DENSE = "mode dense over the same weights in the same run"
KEYS = (
    "subject", "part", "model", "shape", "layers", "synthetic", "mode", "weights", "device", "threads", "batch",
    "context", "activation_sparsity", "predicted_sparsity", "tokens_per_s", "tpot_ms", "median_us", "p10_us",
    "p90_us", "alone", "bytes", "bandwidth_gb_s", "floor_us", "floor_tokens_per_s", "fraction_of_floor",
    "dense_ratio", "dense_ratio_95", "baseline", "joules_per_token", "quality", "loading", "simulated", "repeat",
    "calls", "run", "machine", "versions", "commit", "date", "command", "note", "samples",
)  # fmt: skip


def make_row(**values: Any) -> Row:
    """A row with every key, None where nothing was said, and the circumstances of this process filled in."""
    unknown = set(values) - set(KEYS)
    assert not unknown, f"a row has no {unknown}"
    return {**dict.fromkeys(KEYS), **_circumstances(), **values}


def measured(timings: Mapping[str, Timing], name: str, base: str = "dense", baseline: str = DENSE) -> Row:
    """The keys of a row that come out of one interleaved run.

    Args:
        timings: of `interleave`, "probe" among them; "NAME alone" where the same was timed by itself.
        name: whose row it is.
        base: what it is compared with, if that was timed.
        baseline: its description.
    """
    timing = timings[name]
    keys: Row = {
        "calls": int(timing.us.size),
        "median_us": round(timing.median, 2),
        "p10_us": round(timing.p10, 2),
        "p90_us": round(timing.p90, 2),
        "run": hashlib.blake2s(timings["probe"].us.tobytes(), digest_size=4).hexdigest(),
        "samples": pack(timing),
    }
    by_itself = timings.get(f"{name} alone")
    if by_itself is not None:
        keys["alone"] = {"median_us": round(by_itself.median, 2), "p10_us": round(by_itself.p10, 2)}
    if base not in timings:
        return keys
    ratio = speedup(timings[base], timing)
    keys["dense_ratio"] = round(ratio.value, 3)
    keys["dense_ratio_95"] = [round(ratio.low, 3), round(ratio.high, 3)]
    return {**keys, "baseline": baseline}


def floor(must_read: float, held: int, probe: Timing, timing: Timing) -> Row:
    """The keys that compare a time with the floor, p10 against p10.

    Args:
        must_read: bytes per call.
        held: bytes of all weights that the calls go through; where a cache may hold them, memory sets no floor.
        probe: times of `Probe` in the same run.
        timing: times of the subject.
    """
    known = {"bytes": round(must_read), "bandwidth_gb_s": round(memory.bandwidth(probe) / 1e9, 2)}
    if held < memory.BUFFER_BYTES:
        return known
    floor_us = must_read / memory.bandwidth(probe) * 1e6
    return {
        **known,
        "floor_us": round(floor_us, 1),
        "fraction_of_floor": round(floor_us / timing.p10, 4),
    }


def _circumstances() -> Row:
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "batch": 1,
        "machine": {
            "processor": machine.processor_name(),
            "cpus": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "prosparse": __version__,
            "kernels": machine.kernel_name(torch.device("cpu")),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command(),
    }


def commit() -> str | None:
    """Short hash of the checkout that runs, with "-dirty" where it was changed; None outside a checkout."""
    root = Path(machine.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def command() -> str:
    """What was typed, without the folders of this machine in the program's name."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        module = "prosparse.bench" if program.parent.name == "bench" else "prosparse"
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])
