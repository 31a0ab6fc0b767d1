"""The parts that measure, by name, and what runs one of them in a process of its own."""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import triton

from prosparse import machine
from prosparse.kernels import cpu

from . import FORMATS
from .hybrid import hybrid
from .ops import ffns, ops
from .subjects import COLD, Setting, described, over
from .tokens import beside, tokens
from .variants import variants

ONE, SEVEN, THIRTEEN = "minicpm-s-1b", "prosparse-llama-2-7b", "prosparse-llama-2-13b"
FEWER = 8  # where nothing is timed: so many times less memory, for several processes at once
Part = Callable[[Setting], bool]


def environment(setting: Setting) -> bool:
    """Versions, the bandwidth that a kernel gets which only reads, and what a launch costs in a graph."""
    many = 200
    timings = setting.times({"empty": (setting.probe.empty, many), "read": (setting.probe, 4)})
    setting.said(json.dumps(facts(setting.device)))
    setting.row(timings, "read", setting.probe.nbytes, "none", "", subject="probe", mode="read")
    setting.row(timings, "empty", 0, "none", "", subject="probe", mode="empty launch in a graph")
    return True


def on_two(setting: Setting) -> bool:
    """A GPU and a CPU that share a model, small first."""
    return all([over(shape, ("bf16",), hybrid)(setting) for shape in (ONE, SEVEN)])


def facts(device: torch.device) -> dict[str, Any]:
    return {
        **described(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "kernels": machine.kernel_name(device),
        "extension": cpu.available(),
    }


PARTS: dict[str, Part] = {
    "environment": environment,
    "tokens-1b": over(ONE, FORMATS, tokens),
    "tokens-7b": over(SEVEN, FORMATS, tokens),
    "hybrid": on_two,
    "ops-1b": over(ONE, FORMATS, ops),
    "ops-7b": over(SEVEN, FORMATS, ops),
    "variants-7b": over(SEVEN, FORMATS, variants),
    "ffn-1b": over(ONE, ("bf16",), ffns),
    "ffn-7b": over(SEVEN, FORMATS, ffns),
    "ops-13b": over(THIRTEEN, ("bf16", "int4"), ops),
    "transformers-eager-1b": over(ONE, ("bf16",), partial(beside, False)),
    "transformers-compile-1b": over(ONE, ("bf16",), partial(beside, True)),
    "transformers-compile-7b": over(SEVEN, ("bf16",), partial(beside, True)),
}


def run_part(name: str, rows: Path | None, rounds: int, formats: tuple[str, ...] = FORMATS) -> int:
    """Measure a part on the current device; rows are appended to a file as they come. The exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)

    def write(row: dict[str, Any]) -> None:
        if rows is not None:
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    cold = COLD if rounds > 1 else COLD // FEWER
    return 0 if PARTS[name](Setting(write, rounds, cold, formats)) else 1
