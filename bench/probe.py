"""The bandwidth of this machine's memory as a kernel can get it: read only, with the threads in use."""

from __future__ import annotations

import torch
from torch import Tensor

from prosparse.kernels import cpu
from prosparse.weights.memory import Arena

from .clock import Timing

# Last-level caches shared by a whole server are larger than what one guest gets of them; this is beyond that share.
BUFFER_BYTES = 576 << 20
CALL_BYTES = 16 << 20  # half a millisecond: short enough that p10 is undisturbed, long enough to hide its start


class Probe:
    """Reads the next part of a buffer that no cache holds, once per call."""

    def __init__(self) -> None:
        buffer = Arena(BUFFER_BYTES).empty((BUFFER_BYTES // 4,), torch.float32)  # on huge pages like the weights
        buffer.fill_(1.0)  # pages that were never written all read the same zeros
        self._parts = buffer.split(CALL_BYTES // buffer.element_size())

    def __call__(self, number: int) -> None:
        read(self._parts[number % len(self._parts)])


def read(part: Tensor) -> None:
    """Read every byte once. Without the extension it is torch's fastest reduction, which is that of float32."""
    if cpu.available():
        torch.ops.prosparse.cpu_read(part)
    else:
        part.sum()


def bandwidth(timing: Timing) -> float:
    """Bytes per second at p10."""
    return CALL_BYTES / timing.p10 * 1e6
