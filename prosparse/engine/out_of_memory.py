"""What is said where a GPU's memory does not do: what was asked for, what there is, and what would fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..config import ModelConfig
from ..errors import MachineError
from ..hardware import parse_size, show_size
from ..hardware.measure import gpu_memory
from ..placement.sizes import sizes_of
from ..weights.load import bytes_in_formats

ASKED = re.compile(r"Tried to allocate ([\d.]+) (\w+?)(?:ytes)?\b")  # PyTorch's words


@dataclass(frozen=True)
class Held:
    """A model on a GPU, as far as its memory goes.

    Args:
        config: of the model.
        weights: format.
        context: tokens.
        budget: bytes that it is held to; None where it takes what it needs.
    """

    config: ModelConfig
    weights: str
    context: int
    budget: int | None = None

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one sequence."""
        config, itemsize = self.config, 4 if self.weights == "fp32" else 2
        return 2 * config.layers * config.kv_heads * config.head_dim * self.context * itemsize


@contextmanager
def told(where: str, held: Held, device: torch.device) -> Iterator[None]:
    """Whoever runs out of GPU memory inside is told what to do. Raises MachineError for that."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(f"{where}: {_what(error, held, device)}; {_cure(error, held)}") from error


def fitting_budget(held: Held) -> str | None:
    """What to pass for a model that is larger than the GPU; None where there is no room or no sharing."""
    if not held.config.gated or held.config.experts:
        return None
    usable, context = gpu_memory()
    tenths = usable * 10 // 2**30
    sizes = sizes_of(held.config, held.weights, held.weights, held.context, "dense")
    least = context + sizes.fixed + sizes.attention + sizes.cache
    return f"--budget {tenths / 10:g}GiB" if tenths * 2**30 >= 10 * least else None


def _what(error: torch.OutOfMemoryError, held: Held, device: torch.device) -> str:
    asked = _asked(error)
    more = "more was asked for" if asked is None else f"{show_size(asked)} more were asked for"
    free = show_size(torch.cuda.mem_get_info(device)[0])
    if held.budget is None:
        return f"out of GPU memory: {more}, {free} are free"
    taken = show_size(torch.cuda.memory_reserved(device))
    return (
        f"out of GPU memory: {more}, but of a budget of {show_size(held.budget)} {taken} are taken, and {free} are free"
    )


def _cure(error: torch.OutOfMemoryError, held: Held) -> str:
    if held.budget is not None:
        return f"pass at least --budget {_above(held.budget + (_asked(error) or 0))}, or lower --context {held.context}"
    usable, context = gpu_memory()
    fitting = [
        f"--weights {fmt} ({show_size(nbytes)})"
        for fmt, nbytes in bytes_in_formats(held.config, held.weights).items()
        if nbytes + held.cache_bytes <= usable - context
    ]
    budget = fitting_budget(held)
    ways = [*fitting, *([] if budget is None else [f"{budget}, which leaves cold neurons to the CPU,"])]
    return f"{' or '.join(ways)} would fit" if ways else f"lower --context {held.context}, or use --device cpu"


def _asked(error: torch.OutOfMemoryError) -> int | None:
    """Bytes that could not be had, where PyTorch says so."""
    found = ASKED.search(str(error))
    return None if found is None else parse_size(found[1] + found[2])


def _above(nbytes: int) -> str:
    return f"{-(-nbytes * 10 // 2**30) / 10:g}GiB"
