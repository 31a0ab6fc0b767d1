"""Carries what two devices hand each other within a step, and waits for nothing but what is asked for.

From a GPU, tensors travel on a stream of their own into pinned memory, while the GPU goes on computing; the way back is
an asynchronous copy too. Between other devices, or two parts of one memory, it is an ordinary copy, or none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes


def has_streams(device: torch.device) -> bool:
    """Whether copies to and from a device may go on beside what it and the CPU compute."""
    return device.type == "cuda"


class Carrier(Protocol):
    """Takes tensors of the fast device to the slow one."""

    def send(self, name: str, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Start them on their way; what is returned waits for them, and gives them."""


class Link:
    """One pair of devices.

    Its buffers hold one exchange at a time: whoever uses it holds `lock` from the first `send` to the last answer.

    Args:
        fast: the device that leads.
        slow: the one that is handed work.
    """

    def __init__(self, fast: torch.device, slow: torch.device) -> None:
        self.fast, self.slow, self.lock = fast, slow, threading.RLock()
        self._pinned: dict[str, Tensor] = {}
        self._copies = torch.cuda.Stream(fast) if has_streams(fast) else None

    def send(self, name: str, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Start tensors on their way to the slow device.

        Args:
            name: of the buffer that they travel through; what came through it before is overwritten.
            tensors: on the fast device; they may be freed, but not written to, before they have arrived.

        Returns:
            what waits for them, and gives them.
        """
        if self._copies is None:
            there = [tensor.to(self.slow) for tensor in tensors]
            return lambda: there
        arrived = torch.cuda.Event()
        there = self._views(name, tensors)
        self._copies.wait_stream(torch.cuda.current_stream(self.fast))  # until they are computed
        with torch.cuda.stream(self._copies):
            for tensor, view in zip(tensors, there, strict=True):
                view.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._copies)
            arrived.record(self._copies)

        def wait() -> list[Tensor]:
            arrived.synchronize()
            return there

        return wait

    def bring(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of tensors of the slow device on the fast one, where what uses them waits for them; nobody else does.

        The buffer is free again when something that was computed on the fast device afterwards has been waited for.
        """
        if self._copies is None:
            return [tensor.to(self.fast) for tensor in tensors]
        views = self._views(name, tensors)
        for tensor, view in zip(tensors, views, strict=True):
            view.copy_(tensor)
        return [view.to(self.fast, non_blocking=True) for view in views]

    def _views(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialised tensors of the same shapes in a pinned buffer."""
        sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        buffer = self._pinned.get(name)
        if buffer is None or buffer.numel() < sum(sizes):
            buffer = self._pinned[name] = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        views, start = [], 0
        for tensor, size in zip(tensors, sizes, strict=True):
            views.append(buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
            start += size
        return views
