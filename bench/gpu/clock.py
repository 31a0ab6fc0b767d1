"""Times of calls that a graph replays, by the device's own events, subjects in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch

from prosparse.engine.chain import CudaGraph

from ..clock import Timing

AHEAD = 600_000  # cycles, 0.3 ms: to launch a graph of some hundred nodes takes the host 0.1
Call = Callable[[int], object]  # with the number of the call


class Clock(Protocol):
    """Records calls and times them.

    Attributes:
        warm_s: seconds of calls before the first that counts.
    """

    warm_s: float

    def record(self, call: Call, calls: int) -> Callable[[], object]:
        """What makes so many calls again, one after the other."""

    def time(self, function: Callable[[], object]) -> float:
        """Microseconds that the device takes for what a function asks of it."""


class CudaClock:
    """Of the current CUDA device."""

    warm_s = 0.1  # an idle device clocks down, and takes some time to come back

    def record(self, call: Call, calls: int) -> Callable[[], object]:
        kept: list[object] = []  # results stay alive, so that no call writes where another one did

        def all_calls() -> None:
            kept[:] = [call(number) for number in range(calls)]

        graph = CudaGraph(torch.cuda.graph_pool_handle())
        graph.capture(all_calls)

        def replay() -> list[object]:
            graph.replay()
            return kept

        return replay

    def time(self, function: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)  # meanwhile the host asks for the rest, so that its time is not in between
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3


def in_turns(clock: Clock, recorded: Mapping[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, Timing]:
    """Microseconds of a single call of each subject: A B C A B C ...

    Args:
        clock: whose.
        recorded: by name what makes calls, and how many.
        rounds: timed ones, after one or more that are not.
    """
    samples: dict[str, list[float]] = {name: [] for name in recorded}
    warm_until = time.monotonic() + (clock.warm_s if rounds > 1 else 0.0)
    while True:
        for function, _ in recorded.values():
            clock.time(function)
        if time.monotonic() >= warm_until:
            break
    for _ in range(rounds):
        for name, (function, calls) in recorded.items():
            samples[name].append(clock.time(function) / calls)
    return {name: Timing(np.array(us)) for name, us in samples.items()}
