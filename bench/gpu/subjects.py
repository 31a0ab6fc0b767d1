"""What is measured on a GPU, and the rows of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from prosparse import machine
from prosparse.config import ModelConfig
from prosparse.config.shapes import shape as shape_named
from prosparse.engine.chain import Graph
from prosparse.weights.synthetic import MatrixMaker

from ..check import require_close
from ..clock import Timing
from ..row import Row, make_row, measured
from . import FORMATS
from .clock import Call, Clock, CudaClock, in_turns
from .probe import GpuProbe

log = logging.getLogger("prosparse.bench")
COLD = 256 << 20  # bytes that lie between two readings of the same: five times the L2 of an H100
LEAST = 16  # calls of a graph: what begins and ends it is to be small beside them
# Of the shapes, as published with ProSparse where it was.
SPARSITY = {"minicpm-s-1b": 0.88, "prosparse-llama-2-7b": 0.8932, "prosparse-llama-2-13b": 0.888}
CUBLAS = "cuBLAS in bf16, in a graph of the same run"
EXACTLY = 1e-4  # of a result, L2: the same weights in fp32 sums of another order


def on_cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@dataclass
class Setting:
    """Where and how long a part measures.

    Args:
        write: gets each row as soon as there is one.
        rounds: timed replays of each subject; 1 is to compile and check alone.
        cold: bytes of operands that take turns.
        formats: what a part measures of its own formats.
        device, clock: of what is measured.
        new_graph: of whole tokens; None is CUDA's.
    """

    PROBES: ClassVar[int] = 4  # readings in a graph

    write: Callable[[Row], None]
    rounds: int = 20
    cold: int = COLD
    formats: tuple[str, ...] = FORMATS
    device: torch.device = field(default_factory=on_cuda)
    clock: Clock = field(default_factory=CudaClock)
    new_graph: Callable[[], Graph] | None = None

    def __post_init__(self) -> None:
        self.probe = GpuProbe(2 * self.cold, self.device)  # what a launch costs beside its bytes is to be small
        self.probed = self.clock.record(self.probe, self.PROBES)

    def said(self, line: str) -> None:
        """Something for the log."""
        log.info("%s", line)

    def maker(self, fmt: str) -> MatrixMaker:
        return MatrixMaker(fmt, device=self.device)

    def copies(self, nbytes: int) -> int:
        return max(2, -(-self.cold // nbytes))

    def times(self, calls: Mapping[str, tuple[Call, int]]) -> dict[str, Timing]:
        """Of subjects by name, each with a number of calls that a graph makes; "probe" is the bandwidth's."""
        recorded = {name: (self.clock.record(call, count), count) for name, (call, count) in calls.items()}
        return in_turns(self.clock, {**recorded, "probe": (self.probed, self.PROBES)}, self.rounds)

    def row(
        self, timings: dict[str, Timing], name: str, nbytes: float, base: str, baseline: str, **labels: object
    ) -> None:
        """Write one.

        Args:
            timings: of `times`.
            name: whose.
            nbytes: that a call must read.
            base, baseline: what it is compared with, and what that is.
            labels: further keys.
        """
        bandwidth = self.probe.nbytes / timings["probe"].p10 * 1e6
        floor_us = nbytes / bandwidth * 1e6
        row = make_row(
            device="cuda",
            **measured(timings, name, base, baseline),
            bytes=round(nbytes),
            bandwidth_gb_s=round(bandwidth / 1e9, 1),
            floor_us=round(floor_us, 2),
            fraction_of_floor=round(floor_us / timings[name].p10, 4),
            repeat=1,
            **labels,
        )
        self.write_here(row)

    def write_here(self, row: Row) -> None:
        """Write a row with what is to be said of the device."""
        row["machine"] |= described(self.device)
        row["versions"] |= {"kernels": machine.kernel_name(self.device)}
        self.write(row)


def normal(setting: Setting, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0)).to(setting.device)


def described(device: torch.device) -> dict[str, object]:
    """Of a GPU, for the key "machine"."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    return {"gpu": found.name, "gpu_memory_gb": round(found.total_memory / 1e9, 1), "sms": found.multi_processor_count}


def right(what: str, actual: torch.Tensor, expected: torch.Tensor, terms: int, more: float = EXACTLY) -> None:
    """Raise MachineError for a result that is wrong; both are [tokens, n] on the device."""
    require_close(what, actual.float().cpu(), expected.float().cpu(), terms, more)


def each(things: Mapping[str, Callable[[], None]]) -> bool:
    """Measure one thing after the other; what fails is said, and the others go on. True where none did."""
    fine = True
    for name, measure in things.items():
        try:
            with torch.no_grad():
                measure()
        except Exception as error:  # a fault of one must not cost the rows of the others
            log.error("%s FAILED: %s: %s", name, type(error).__name__, str(error).strip()[:600])
            fine = False
    return fine


Measure = Callable[[Setting, str, ModelConfig, str], Mapping[str, Callable[[], None]]]


def over(shape: str, formats: tuple[str, ...], measure: Measure) -> Callable[[Setting], bool]:
    """A part: what `measure` names, for one shape in some formats."""

    def part(setting: Setting) -> bool:
        config = shape_named(shape)
        return all([each(measure(setting, shape, config, fmt)) for fmt in formats if fmt in setting.formats])

    return part
