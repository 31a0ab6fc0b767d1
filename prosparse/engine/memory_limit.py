"""Holds PyTorch's allocator on a GPU to the budgets of the models that are there.

PyTorch knows one limit for a process and device, so that is what is held: what all models with a budget may take
together, beside what the process had taken before the first of them. It is lifted with the last of them.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field

import torch

from ..hardware.measure import gpu_memory, load_libraries


@dataclass
class _Limit:
    """Of one device: what PyTorch is told, and what it said before."""

    device: torch.device
    before: int  # bytes that were reserved
    fraction: float
    grants: dict[int, int] = field(default_factory=dict)

    def tell(self) -> None:
        allowed = (self.before + sum(self.grants.values())) / _total(self.device)
        torch.cuda.set_per_process_memory_fraction(max(0.0, min(self.fraction, allowed)), self.device)


_lock = threading.RLock()  # a grant may be forgotten, and withdrawn, wherever Python collects garbage
_limits: dict[torch.device, _Limit] = {}  # as PyTorch's own, of the process


class Grant:
    """From now on, until it is released or forgotten, PyTorch takes no more than this for a model.

    Args:
        budget: bytes of GPU memory for the model, the device's context included.
        device: the GPU.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        load_libraries()
        if device.index is None:  # which PyTorch asks for where it is told of a limit
            device = torch.device(device.type, torch.cuda.current_device())
        self.budget, self.device, self.context = budget, device, gpu_memory()[1]
        with _lock:
            if device not in _limits:
                torch.cuda.empty_cache()
                fraction = torch.cuda.get_per_process_memory_fraction(device)
                _limits[device] = _Limit(device, torch.cuda.memory_reserved(device), fraction)
            _limits[device].grants[id(self)] = budget - self.context
            _limits[device].tell()
        self._withdraw = weakref.finalize(self, _withdraw, device, id(self))
        self._withdraw.atexit = False  # the process's end is the limit's

    @property
    def left(self) -> int:
        """Bytes that PyTorch may still take."""
        allowed = torch.cuda.get_per_process_memory_fraction(self.device) * _total(self.device)
        return max(0, int(allowed) - torch.cuda.memory_reserved(self.device))

    def release(self) -> None:
        """PyTorch is held to it no more."""
        self._withdraw()


def grant(budget: int, device: torch.device) -> Grant | None:
    """A grant on a GPU; None on the CPU, whose memory nobody limits."""
    return Grant(budget, device) if device.type == "cuda" else None


def _withdraw(device: torch.device, key: int) -> None:
    with _lock:
        limit = _limits[device]
        del limit.grants[key]
        if limit.grants:
            limit.tell()
        else:
            torch.cuda.set_per_process_memory_fraction(limit.fraction, device)
            del _limits[device]


def _total(device: torch.device) -> int:
    """Of which PyTorch takes a fraction; of the two that it might mean the larger, so that the limit is not above."""
    return max(torch.cuda.mem_get_info(device)[1], torch.cuda.get_device_properties(device).total_memory)
