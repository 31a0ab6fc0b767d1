"""Decode steps that run ahead of the host: recorded once, replayed for every token, read some steps late.

A step takes its tokens from where the step before left them, so the host only has to keep a few steps launched. What it
reads of a step that ends a text makes those after it surplus: their tokens are not read, what they counted is taken
back, and what they wrote to the cache lies behind the end, where the next step writes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.tally import new_tally

from ..model.cache import KVCache
from ..model.decoder import Decoder
from ..model.step import DeviceStep

log = logging.getLogger("prosparse")

_recording = threading.Lock()
LATE = 2  # steps launched beyond the one that is read: what the host does for a token takes a tenth of a step
CHOICES = 2  # graphs for a number of sequences, one per choice of kernels: the latest, and the one before


class Step(Protocol):
    """See `model.step.DeviceStep`."""

    ids: Tensor
    slots: Tensor
    starts: Tensor
    peaks: Tensor
    logits: Tensor

    def __call__(self) -> None: ...


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


class Steps:
    """A cache, and the steps over it by number of sequences and choice of kernels. One run at a time uses it.

    Args:
        decoder: the network.
        cache: of the sequences.
        make_step: the step for a number of sequences over a cache and a tally.
        new_graph: an empty graph; by default one of CUDA.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        make_step: Callable[[Decoder, KVCache, Tensor, int], Step],
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        self.cache, self.tally = cache, new_tally(decoder.device, decoder.config.layers)
        self.failed = False
        self._decoder, self._make_step, self._new_graph = decoder, make_step, new_graph or _graphs_of_one_pool()
        self._recorded: dict[tuple[int, Decoder], tuple[Step, Graph]] = {}
        cuda = decoder.device.type == "cuda"
        held = LATE + 1
        self._ids = torch.zeros(held, MAX_ROWS, dtype=torch.int64, pin_memory=cuda)
        self._peaks = torch.zeros(held, MAX_ROWS, pin_memory=cuda)
        self._tallies = new_tally(decoder.device, held, decoder.config.layers)
        self._events = [torch.cuda.Event() for _ in range(held)] if cuda else []
        self._step: Step | None = None
        self._graph: Graph | None = None
        self._slots: tuple[int, ...] = ()
        self._starts: tuple[int, ...] = ()  # of the next step
        self._launched = 0

    @property
    def logits(self) -> Tensor:
        """Of the latest step launched, [sequences, vocab] float32."""
        assert self._step is not None, "logits are those of a step that was launched"
        return self._step.logits

    @torch.inference_mode()
    def begin(
        self, ids: Tensor, slots: tuple[int, ...], starts: tuple[int, ...], decoder: Decoder | None = None
    ) -> bool:
        """Set what the next step takes: tokens ids [sequences] int64 at `starts`. False where no graph can be made.

        `decoder` is the same network with other kernels, whose steps have graphs of their own.
        """
        decoder = decoder or self._decoder
        key = len(slots), decoder
        if self.failed or key not in self._recorded and not self._record(decoder, ids, slots, starts):
            return False
        self._launched = 0
        step, graph = self._recorded[key]
        if step is not self._step or (slots, starts) != (self._slots, self._starts):
            self._step, self._graph = step, graph
            self._set(step, ids, slots, starts)
        else:
            step.ids.copy_(ids)
        self._slots, self._starts = slots, starts
        return True

    @torch.inference_mode()
    def launch(self) -> None:
        """One step; the next takes what it chooses. At most `LATE` + 1 may be launched beyond the last one read."""
        assert self._step is not None and self._graph is not None, "begin comes before launch"
        self._graph.replay()
        place, n = self._launched % (LATE + 1), len(self._slots)
        self._ids[place, :n].copy_(self._step.ids, non_blocking=True)
        self._peaks[place, :n].copy_(self._step.peaks, non_blocking=True)
        self._tallies[place].copy_(self.tally)
        if self._events:
            self._events[place].record()
        self._launched += 1
        self._starts = tuple(start + 1 for start in self._starts)

    def read(self, number: int) -> tuple[Sequence[int], Sequence[float]]:
        """Tokens that a step since `begin` chose, counted from 0, and their logits; waits for it."""
        assert self._launched - LATE - 1 <= number < self._launched, "its place has been taken by a later step"
        place, n = number % (LATE + 1), len(self._slots)
        if self._events:
            self._events[place].synchronize()
        return self._ids[place, :n].tolist(), self._peaks[place, :n].tolist()

    @torch.inference_mode()
    def keep(self, count: int) -> None:
        """Take back what was counted after the first `count` steps since `begin`, the latest of which was read last."""
        if count < self._launched:
            self.tally.copy_(self._tallies[(count - 1) % (LATE + 1)])
            self._starts = ()

    def _set(self, step: Step, ids: Tensor, slots: tuple[int, ...], starts: tuple[int, ...]) -> None:
        step.ids.copy_(ids)
        step.slots.copy_(torch.tensor(slots, dtype=torch.int32))
        step.starts.copy_(torch.tensor(starts, dtype=torch.int32))

    def _record(self, decoder: Decoder, ids: Tensor, slots: tuple[int, ...], starts: tuple[int, ...]) -> bool:
        before = self.tally.clone()
        others = [key for key in self._recorded if key[0] == len(slots)]
        for key in others[: len(others) + 1 - CHOICES]:
            del self._recorded[key]
        try:
            step, graph = self._make_step(decoder, self.cache, self.tally, len(slots)), self._new_graph()
            self._set(step, ids, slots, starts)  # recording may compute this very step, which does no harm
            graph.capture(step)
        except Exception as error:  # whatever it is, decoding goes on without
            first: BaseException = error
            while first.__context__ is not None:  # the end of a recording says only that something failed before
                first = first.__context__
            reason = str(first).strip().split("\n")[0]
            log.warning("engine: no CUDA graph (%s: %s); decoding op by op", type(first).__name__, reason)
            self.failed = True
        else:
            self._recorded[len(slots), decoder] = step, graph
        self.tally.copy_(before)
        self._step = None  # what is set is no longer what the next step should take
        return not self.failed


class StepPool:
    """Lends a run its cache and steps, so that graphs are recorded once and not for every prompt.

    Args:
        decoder: the network, which `model.step.why_no_step` has nothing against.
        kv_dtype: of the caches.
        make_step, new_graph: see `Steps`.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_dtype: torch.dtype,
        make_step: Callable[[Decoder, KVCache, Tensor, int], Step] = DeviceStep,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        self._decoder, self._kv_dtype, self._make_step = decoder, kv_dtype, make_step
        self._new_graph = new_graph
        self._idle: Steps | None = None
        self._failed = False
        self._lock = threading.Lock()

    @torch.inference_mode()  # else what one run made in this mode could not be written to in another without
    def lend(self, slots: int, context: int) -> Steps:
        """Steps whose cache has room for that, with a zeroed tally.

        Raises:
            MachineError: no memory for a cache.
        """
        with self._lock:
            found, self._idle = self._idle, None
        if found is None or found.cache.slots < slots or found.cache.context < context:
            found = None  # makes room before more is asked for
            cache = KVCache(self._decoder.config, slots, context, self._kv_dtype, self._decoder.device)
            found = Steps(self._decoder, cache, self._make_step, self._new_graph)
        found.tally.zero_()
        found.failed = self._failed
        return found

    def take_back(self, steps: Steps) -> None:
        """For the next run; of several the one with the most room stays."""
        with self._lock:
            self._failed = self._failed or steps.failed
            if self._idle is None or self._idle.cache.keys.nbytes < steps.cache.keys.nbytes:
                self._idle = steps


def _graphs_of_one_pool() -> Callable[[], Graph]:
    pools: list[Any] = []

    def new() -> Graph:
        if not pools:
            pools.append(torch.cuda.graph_pool_handle())
        return CudaGraph(pools[0])

    return new
