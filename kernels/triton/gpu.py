"""The GPU that a launch is sized for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """
    Args:
        capability: compute capability, e.g. 90 for 9.0.
        sms: streaming multiprocessors.
    """

    capability: int
    sms: int


stand_in = Gpu(80, 1)  # for tensors that are on no GPU: in the interpreter, and ahead of time for any target


def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind a device."""
    return _properties(device) if device.type == "cuda" else stand_in


@functools.cache
def _properties(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(10 * properties.major + properties.minor, properties.multi_processor_count)
