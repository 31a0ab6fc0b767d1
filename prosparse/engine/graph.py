"""Decode steps that run ahead of the host: recorded once, replayed for every token, read some steps late.

On one device a step is one graph. It takes its tokens from where the step before left them, so the host only has to
keep a few steps launched. What it reads of a step that ends a text makes those after it surplus: their tokens are not
read, what they counted is taken back, and what they wrote to the cache lies behind the end, where the next step writes.
On two devices a step is a chain of graphs with parts of the host between them, and one is launched at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from prosparse.kernels.checks import MAX_ROWS

from ..model.cache import KVCache
from ..model.decoder import Decoder
from ..model.step import DeviceStep, Part
from .chain import Chain, Graph, graphs_of_one_pool
from .shared_step import SharedStep
from .tallies import copied, copy, parts_of

log = logging.getLogger("prosparse")

LATE = 2  # steps launched beyond the one that is read: what the host does for a token takes a tenth of a step
CHOICES = 2  # graphs for a number of sequences, one per choice of kernels: the latest, and the one before


class Step(Protocol):
    """See `model.step.DeviceStep` and `engine.shared_step.SharedStep`."""

    ids: Tensor
    peaks: Tensor
    logits: Tensor
    parts: Sequence[Part]

    def place(self, slots: tuple[int, ...], starts: tuple[int, ...]) -> None: ...

    def take(self, ids: Tensor) -> None: ...


MakeStep = Callable[[Decoder, KVCache, Any, int], Step]


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
        make_step: MakeStep,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        self.cache, self.tally = cache, decoder.new_tally()
        self.failed = False
        # On two devices a step only ends when the host has done its part of it: one in vain would cost what it takes.
        self.late = LATE if decoder.tiers.is_one else 0
        self._decoder, self._make_step, self._new_graph = decoder, make_step, new_graph or graphs_of_one_pool()
        self._recorded: dict[tuple[int, Decoder], tuple[Step, Chain]] = {}
        cuda = decoder.tiers.head.device.type == "cuda"
        held = self.late + 1
        self._ids = torch.zeros(held, MAX_ROWS, dtype=torch.int64, pin_memory=cuda)
        self._peaks = torch.zeros(held, MAX_ROWS, pin_memory=cuda)
        self._tallies = [copied(self.tally) for _ in range(held)]
        self._events = [torch.cuda.Event() for _ in range(held)] if cuda else []
        self._step: Step | None = None
        self._chain: Chain | None = None
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
        step, chain = self._recorded[key]
        if step is not self._step or (slots, starts) != (self._slots, self._starts):
            self._step, self._chain = step, chain
            step.place(slots, starts)
        step.take(ids)
        self._slots, self._starts = slots, starts
        return True

    @torch.inference_mode()
    def launch(self) -> None:
        """One step; the next takes what it chooses. At most `late` + 1 may be launched beyond the last one read."""
        assert self._step is not None and self._chain is not None, "begin comes before launch"
        self._chain.replay()
        place, n = self._launched % (self.late + 1), len(self._slots)
        self._ids[place, :n].copy_(self._step.ids, non_blocking=True)
        self._peaks[place, :n].copy_(self._step.peaks, non_blocking=True)
        if self.late:
            copy(self.tally, self._tallies[place])
        if self._events:
            self._events[place].record()
        self._launched += 1
        self._starts = tuple(start + 1 for start in self._starts)

    def read(self, number: int) -> tuple[Sequence[int], Sequence[float]]:
        """Tokens that a step since `begin` chose, counted from 0, and their logits; waits for it."""
        assert self._launched - self.late - 1 <= number < self._launched, "its place has been taken by a later step"
        place, n = number % (self.late + 1), len(self._slots)
        if self._events:
            self._events[place].synchronize()
        return self._ids[place, :n].tolist(), self._peaks[place, :n].tolist()

    @torch.inference_mode()
    def keep(self, count: int) -> None:
        """Take back what was counted after the first `count` steps since `begin`, the latest of which was read last."""
        if count < self._launched:
            copy(self._tallies[(count - 1) % (self.late + 1)], self.tally)
            self._starts = ()

    def _record(self, decoder: Decoder, ids: Tensor, slots: tuple[int, ...], starts: tuple[int, ...]) -> bool:
        before = copied(self.tally)
        others = [key for key in self._recorded if key[0] == len(slots)]
        for key in others[: len(others) + 1 - CHOICES]:
            del self._recorded[key]
        try:
            step = self._make_step(decoder, self.cache, self.tally, len(slots))
            step.place(slots, starts)  # recording may compute this very step, which does no harm
            step.take(ids)
            chain = Chain(step.parts, self._new_graph)
        except Exception as error:  # whatever it is, decoding goes on without
            first: BaseException = error
            while first.__context__ is not None:  # the end of a recording says only that something failed before
                first = first.__context__
            reason = str(first).strip().split("\n")[0]
            log.warning("engine: no CUDA graph (%s: %s); decoding op by op", type(first).__name__, reason)
            self.failed = True
        else:
            self._recorded[len(slots), decoder] = step, chain
        copy(before, self.tally)
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
        make_step: MakeStep | None = None,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        self._decoder, self._kv_dtype = decoder, kv_dtype
        self._make_step: MakeStep = make_step or (DeviceStep if decoder.tiers.is_one else SharedStep)
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
            cache = KVCache(self._decoder.config, slots, context, self._kv_dtype, self._decoder.tiers.layers)
            found = Steps(self._decoder, cache, self._make_step, self._new_graph)
        for part in parts_of(found.tally):
            part.zero_()
        found.failed = self._failed
        return found

    def take_back(self, steps: Steps) -> None:
        """For the next run; of several the one with the most room stays."""
        with self._lock:
            self._failed = self._failed or steps.failed
            if self._idle is None or self._idle.cache.positions < steps.cache.positions:
                self._idle = steps
