"""The parts of a decode step, those of a GPU recorded as graphs, with the host's own between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ..model.step import Part

_recording = threading.Lock()


class Graph(Protocol):
    """Replays what it has recorded of a function without arguments."""

    def capture(self, function: Callable[[], None]) -> None:
        """Record it; it may run on the way."""

    def replay(self) -> None: ...


class CudaGraph:
    """Launches recorded on the current device; their workspaces are its own, and a replay allocates nothing.

    Args:
        pool: memory that graphs share which never run at the same time.
    """

    def __init__(self, pool: Any) -> None:
        self._graph, self._pool = torch.cuda.CUDAGraph(), pool

    def capture(self, function: Callable[[], None]) -> None:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            function()  # compiles the kernels, which cannot be done while launches are recorded
        here.wait_stream(side)
        # One recording at a time in a process. A failed one leaves its stream behind, unless `here` is come back to.
        with _recording, torch.cuda.stream(here):
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                function()

    def replay(self) -> None:
        self._graph.replay()


def graphs_of_one_pool() -> Callable[[], Graph]:
    """Makes graphs of CUDA that never run at the same time."""
    pools: list[Any] = []

    def new() -> Graph:
        if not pools:
            pools.append(torch.cuda.graph_pool_handle())
        return CudaGraph(pools[0])

    return new


class Chain:
    """The parts of a step, recorded.

    Args:
        parts: in order.
        new_graph: an empty graph.

    Attributes:
        graphs: how many there are.
    """

    def __init__(self, parts: Sequence[Part], new_graph: Callable[[], Graph]) -> None:
        self._links: list[Callable[[], None]] = []
        self.graphs = 0
        for number, part in enumerate(parts, 1):
            if part.on_host:
                part.run()
                self._links.append(part.run)
                continue
            graph = new_graph()
            graph.capture(part.run)
            self._links.append(graph.replay)
            self.graphs += 1
            if number < len(parts):
                graph.replay()  # what is recorded next, or run, takes what this leaves

    def replay(self) -> None:
        """All of the step."""
        for link in self._links:
            link()
