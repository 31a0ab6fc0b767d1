"""The Machine: speeds and latencies that a placement is made for, and the file that describes one that is not here."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prosparse.kernels.weight import FORMATS

from ..config.fields import finite, parse_json_object, read_json_object
from ..errors import UserError

SCHEMA_VERSION = 1
WHOLE = ("gpu_bytes", "context_bytes")
TEXTS = ("name", "source")
MAY_BE_ZERO = ("context_bytes", "gpu_launch_s", "cpu_row_s", "cpu_call_s", "sync_s")


@dataclass(frozen=True)
class Machine:
    """One GPU, one CPU and the link between them. Speeds are bytes per second, as kernels reach them.

    Args:
        name: of the machine.
        gpu_bytes: GPU memory that this process may take, its context included.
        context_bytes: of that, what the driver takes for a process that has kernels loaded.
        gpu_stream, gpu_gather: reading whole matrices, and scattered rows, on the GPU.
        gpu_launch_s: what a kernel of a captured graph costs beside its bytes.
        cpu_stream, cpu_gather: reading whole matrices, and long scattered rows, on the CPU.
        cpu_row_s: what a scattered row costs there beside its bytes.
        cpu_call_s: what a kernel costs there beside its bytes.
        to_gpu, to_cpu: copies over the link, from and to pinned memory.
        sync_s: one way of a small copy, until the other side goes on.
        cpu_formats, gpu_formats: the share of those speeds that a weight format reaches; 1 for those left out.
        source: where the numbers come from, for a person.

    Raises:
        UserError: a number that is none, or out of range.
    """

    name: str
    gpu_bytes: int
    context_bytes: int
    gpu_stream: float
    gpu_gather: float
    gpu_launch_s: float
    cpu_stream: float
    cpu_gather: float
    cpu_row_s: float
    cpu_call_s: float
    to_gpu: float
    to_cpu: float
    sync_s: float
    cpu_formats: Mapping[str, float] = field(default_factory=dict)
    gpu_formats: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):
            value = getattr(self, key.name)
            if key.name in TEXTS:
                _check(isinstance(value, str), key.name, "a string", value)
            elif key.name in ("cpu_formats", "gpu_formats"):
                _check(isinstance(value, Mapping), key.name, "shares by weight format", value)
                for fmt, share in value.items():
                    _check(fmt in FORMATS, key.name, f"of {', '.join(FORMATS)}", fmt)
                    _check(0 < (finite(share) or 0.0) <= 2, f"{key.name} {fmt}", "a share above 0", share)
            elif key.name in WHOLE:
                whole = isinstance(value, int) and not isinstance(value, bool)
                _check(whole and value >= 0, key.name, "a number of bytes", value)
            else:
                number = finite(value)
                least = 0.0 if key.name in MAY_BE_ZERO else math.ulp(0.0)
                _check(number is not None and number >= least, key.name, "a finite number above 0", value)

    def cpu_share(self, fmt: str) -> float:
        """What a weight format reaches of the CPU's speeds."""
        return self.cpu_formats.get(fmt, 1.0)

    def gpu_share(self, fmt: str) -> float:
        """What a weight format reaches of the GPU's speeds."""
        return self.gpu_formats.get(fmt, 1.0)

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str) -> Machine:
        """Raises UserError, naming `source`, for anything that does not describe a machine."""
        return _machine(parse_json_object(text, source, UserError), source)

    @classmethod
    def load(cls, path: str | Path) -> Machine:
        """Read a description file.

        Raises:
            MissingFileError: no such file.
            UserError: it does not describe a machine.
        """
        return _machine(read_json_object(Path(path), UserError), str(path))


def _machine(data: dict[str, Any], source: str) -> Machine:
    version = data.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{source}: schema_version is {version!r}, expected {SCHEMA_VERSION}; describe the machine anew"
        )
    known = {key.name: key for key in dataclasses.fields(Machine)}
    required = [name for name, key in known.items() if key.default is dataclasses.MISSING
                and key.default_factory is dataclasses.MISSING]  # fmt: skip
    for fault, names in (
        ("lacks", [name for name in required if name not in data]),
        ("has unknown keys:", [name for name in data if name not in known]),
    ):
        if names:
            raise UserError(f"{source}: {fault} {', '.join(names)}; a description has {', '.join(known)}")
    try:
        return Machine(**data)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _check(right: bool, key: str, expected: str, got: Any) -> None:
    if not right:
        raise UserError(f"machine: {key} must be {expected}, got {got!r}")
