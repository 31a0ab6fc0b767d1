"""What it costs to name a layer's neurons, in bytes or in the seconds that a machine takes.

    exact       the whole gate
    predicted   the predictor, and the gate's rows of the neurons it names

up and down are read for the same neurons either way. Bytes are the same everywhere. In seconds scattered rows are
dearer than whole matrices, a format may not reach the memory's speed, and every op costs something beside its bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prosparse.kernels.guess import Guess
from prosparse.kernels.weight import Weight

from ...errors import UserError
from ...hardware import Machine, named_machine
from ...hardware.measure import measure_cpu

THIS = "this"


class Cost(Protocol):
    """Of one layer and one token, in any unit."""

    @property
    def unit(self) -> str:
        """Its name."""

    def exact(self, gate: Weight) -> float:
        """Scanning the gate."""

    def predicted(self, guess: Guess, share: float, gate: Weight) -> float:
        """A predictor that names this share of the neurons."""


@dataclass(frozen=True)
class Bytes:
    """What is read."""

    unit: str = "bytes"

    def exact(self, gate: Weight) -> float:
        return gate.nbytes

    def predicted(self, guess: Guess, share: float, gate: Weight) -> float:
        return guess.nbytes + share * gate.nbytes


@dataclass(frozen=True)
class Seconds:
    """What the CPU of a machine takes; the fields are those of `hardware.Machine`.

    Args:
        stream, gather: bytes per second of whole matrices, and of scattered rows.
        row_s, call_s: seconds of a scattered row, and of an op, beside their bytes.
        formats: share of the speeds that a weight format reaches; 1 for those left out.
    """

    stream: float
    gather: float
    row_s: float
    call_s: float
    formats: Mapping[str, float]
    unit: str = "seconds"

    def exact(self, gate: Weight) -> float:
        return self.call_s + self._matrix(gate)

    def predicted(self, guess: Guess, share: float, gate: Weight) -> float:
        parts = [part for part in (guess.first, guess.second) if isinstance(part, Weight)]
        rest = guess.nbytes - sum(part.nbytes for part in parts)  # offsets and signs
        scan = (1 + len(parts)) * self.call_s + rest / self.stream + sum(self._matrix(part) for part in parts)
        row = self.row_s + gate.row_bytes / (self.gather * self.formats.get(gate.format, 1.0))
        return scan + share * gate.shape[0] * row

    def _matrix(self, weight: Weight) -> float:
        return weight.nbytes / (self.stream * self.formats.get(weight.format, 1.0))


def cost_on(machine: Machine | str | None) -> Cost:
    """Bytes where no machine is named.

    Args:
        machine: "this", which is measured, in some seconds; a preset, a description file, or a Machine.

    Raises:
        UserError: no such machine.
    """
    if machine is None:
        return Bytes()
    if machine == THIS:
        return _seconds(measure_cpu())
    described = named_machine(machine, THIS) if isinstance(machine, str) else machine
    if not isinstance(described, Machine):
        raise UserError(f"predictor: machine must be {THIS!r}, a preset, a file or a Machine, got {machine!r}")
    return _seconds(dataclasses.asdict(described))


def _seconds(found: Mapping[str, Any]) -> Seconds:
    names = ("stream", "gather", "row_s", "call_s", "formats")
    return Seconds(**{name: found[f"cpu_{name}"] for name in names})
