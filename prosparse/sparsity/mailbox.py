"""Places that stay where they are, through which two devices hand each other what they need of a step.

What the fast device does here are launches alone, so that a graph can replay it: `send` and `fetch`. The host does the
rest: it marks the end of what sends when it has launched that, waits for the mark, and writes what is to be fetched
before it launches what fetches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .link import has_streams


class Mark(Protocol):
    """A point in what a device has been given to do."""

    def record(self) -> None:
        """Here."""

    def synchronize(self) -> None:
        """Wait until the device has come to where it was recorded last."""


class Passed:
    """Of a device that has always done what it was given."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Mailbox:
    """Of one exchange between two devices. Each name is one place, used for the same shapes in every step.

    Args:
        fast: the device that leads; the other one is the host's.
        new_mark: a mark in what it does.
    """

    def __init__(self, fast: torch.device, new_mark: Callable[[], Mark] | None = None) -> None:
        self._fast, self._pin = fast, has_streams(fast)
        self._new_mark = new_mark or (torch.cuda.Event if self._pin else Passed)
        self._places: dict[str, list[Tensor]] = {}
        self._marks: dict[str, Mark] = {}

    def send(self, name: str, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """On the fast device: copy tensors to their place. What is returned waits for the latest mark of that name."""
        there = self._places_for(name, [(tensor.shape, tensor.dtype) for tensor in tensors])
        for tensor, place in zip(tensors, there, strict=True):
            place.copy_(tensor, non_blocking=True)

        def wait() -> list[Tensor]:
            self._marks[name].synchronize()
            return there

        return wait

    def mark(self, *names: str) -> None:
        """On the host: what sends these has been launched."""
        for name in names:
            self._marks.setdefault(name, self._new_mark()).record()

    def place(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """On the host: where to write what is to be fetched, once something behind the last fetching was waited for."""
        return self._places_for(name, [(shape, dtype)])[0]

    def fetch(self, name: str) -> Tensor:
        """On the fast device: what the host has written."""
        return self._places[name][0].to(self._fast, non_blocking=True)

    def _places_for(self, name: str, kinds: Sequence[tuple[Sequence[int], torch.dtype]]) -> list[Tensor]:
        if name not in self._places:
            self._places[name] = [torch.empty(shape, dtype=dtype, pin_memory=self._pin) for shape, dtype in kinds]
        return self._places[name]
