"""The order of steps: prompts are prefilled as slots become free, and every step decodes all running sequences at once.

All state of a run lives here, none in the engine, so several runs may share an engine's weights.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from prosparse.kernels.checks import MAX_ROWS

from ..model.cache import KVCache
from ..model.decoder import Decoder
from .adapting import Adapting
from .audit import Audit
from .graph import StepPool
from .kernels import Follower, KernelChoice
from .lookup import Costs, best_length
from .request import Request
from .tallies import Tally, copied, counts_of, parts_of

log = logging.getLogger("prosparse")

Progress = Callable[[int, int], None]
PREFILL_CHUNK = 512  # tokens: long enough for full GEMM speed, short enough that attention masks stay small


class Session:
    """One run of a decoder over some prompts.

    Args:
        decoder: the network.
        kv_dtype: of the cache.
        slots: how many sequences decode together, 1 to `MAX_ROWS`.
        context: positions per sequence.
        audit: steps from one audit of the predictor to the next; 0 for none.
        chunk: tokens of a prompt at a time.
        pool: lends the cache, and steps that run ahead of the host; then `close` gives them back.
        choice: which kernels compute exact layers; None leaves that to the decoder's blocks.
        adapting: moves neurons after each prompt; then `close` ends its part in that.
        costs: of steps by their tokens, for prompt lookup; None knows nothing yet.

    Attributes:
        moved: pairs of neurons, and bytes; None where nothing is to be moved.
        surplus: rows of decode steps that were no token of a text: drafts that were wrong.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_dtype: torch.dtype,
        slots: int,
        context: int,
        audit: int = 0,
        chunk: int = PREFILL_CHUNK,
        pool: StepPool | None = None,
        choice: KernelChoice | None = None,
        adapting: Adapting | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._costs = costs or Costs(decoder.blocks[0][0].qkv.format)
        self.decoder, self.chunk, self._pool = decoder, chunk, pool
        self.adapting, self.moved = adapting, None if adapting is None else (0, 0)
        slots = min(slots, MAX_ROWS)
        self.slots = slots
        self.steps_ahead = None if pool is None or audit else pool.lend(slots, context)
        self.tally: Tally
        if self.steps_ahead is not None:
            self.cache, self.tally = self.steps_ahead.cache, self.steps_ahead.tally
        else:
            self.cache = KVCache(decoder.config, slots, context, kv_dtype, decoder.tiers.layers)
            self.tally = decoder.new_tally()
        self.audit = Audit(decoder, audit) if audit else None
        self._choice = choice
        self._follower = self._follow()
        self.steps = self.decode_tokens = self.surplus = self.positions_read = 0
        if adapting is not None:
            adapting.enter()

    @property
    def done(self) -> list[list[int]]:
        """What the decode steps did, per layer: see `kernels.tally`."""
        return counts_of(self.tally)

    @property
    def dense_steps(self) -> list[int]:
        """How many of the decode steps the dense kernel computed in place of the exact one, per layer."""
        ran = {} if self._follower is None else self._follower.ran
        return [sum(n for dense, n in ran.items() if dense[layer]) for layer in range(len(self.decoder.blocks))]

    @torch.inference_mode()
    def prefill(self, token_ids: Tensor, slot: int = 0, start: int = 0, chunk: int | None = None) -> Iterator[Tensor]:
        """Add tokens to a slot; yields the final hidden states of each chunk, [<= chunk, hidden] float32.

        Args:
            token_ids: [tokens] int64, or embeddings, [tokens, hidden] float32.
        """
        for part in token_ids.to(self.decoder.device).split(chunk or self.chunk):
            yield self.decoder.prefill(part, slot, start, self.cache)
            start += len(part)

    @torch.inference_mode()
    def decode(self, token_ids: Tensor, slots: tuple[int, ...], starts: tuple[int, ...]) -> Tensor:
        """One step: token_ids [slots, rows] at `starts`; returns logits [slots * rows, vocab] float32."""
        watch = None if self.audit is None else self.audit.of_step(self.steps)
        decoder = self._decoder(token_ids.numel())
        hidden = decoder.decode(token_ids.to(self.decoder.device), slots, starts, self.cache, self.tally, watch)
        self._count(starts, token_ids.shape[1])
        return self.decoder.logits(hidden)

    @torch.inference_mode()
    def count_anew(self) -> None:
        """Forget what was counted; the cache stays as it is."""
        if self._follower is not None:
            self._follower.close()
        for part in parts_of(self.tally):
            part.zero_()
        self._follower = self._follow()
        self.steps = self.decode_tokens = self.surplus = self.positions_read = 0
        self.moved = None if self.adapting is None else (0, 0)

    def close(self) -> None:
        """Give back what the pool lent; nothing but what was counted is of use then."""
        if self._follower is not None:
            self._follower.close()
        if self.adapting is not None:
            self.adapting.leave()
            self.adapting = None
        if self._pool is not None and self.steps_ahead is not None:
            self.tally = copied(self.steps_ahead.tally)
            self._pool.take_back(self.steps_ahead)
            self.steps_ahead = None

    def _follow(self) -> Follower | None:
        frozen = self.steps_ahead is not None
        # It has the counters and not this session: two that held each other would keep the cache until a collection.
        return None if self._choice is None else Follower(self._choice, partial(counts_of, self.tally), frozen)

    def _decoder(self, tokens: int) -> Decoder:
        """What computes a step of so many tokens."""
        return self.decoder if self._follower is None else self._follower.decoder(tokens)

    def _count(self, starts: tuple[int, ...], rows: int = 1) -> None:
        if self._follower is not None:
            self._follower.count(len(starts) * rows)
        self.steps += 1
        self.decode_tokens += len(starts) * rows
        window = self.decoder.config.sliding_window
        self.positions_read += sum(start + rows - (max(0, start + 1 - window) if window else 0) for start in starts)

    def run(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, str]]:
        """Generate every request; yields (number of the request, new text) as text becomes certain.

        `progress` is called with (prompt tokens done, prompt tokens in all) while a prompt is read.
        """
        if self.steps_ahead is not None and any(request.lookup for request in requests):
            log.info("engine: prompt_lookup does nothing here: recorded steps take one token of each sequence")
        waiting = deque(enumerate(requests))
        running: dict[int, tuple[int, Request]] = {}
        free = list(range(self.slots))[::-1]
        while waiting or running:
            while waiting and free:
                number, request = waiting.popleft()
                yield number, self._start(request, free[-1], progress)
                if not request.done:
                    running[free.pop()] = number, request
            if running:
                yield from self._step(running)
            for slot in [slot for slot, (_, request) in running.items() if request.done]:
                del running[slot]
                free.append(slot)

    @torch.inference_mode()
    def _start(self, request: Request, slot: int, progress: Progress | None) -> str:
        done = request.cached
        for hidden in self.prefill(request.prompt[done:], slot, done):
            last = hidden[-1:]
            done += len(hidden)
            if progress is not None:
                progress(done, request.length)
        if self.adapting is not None:
            self.moved = self.adapting.move(self.moved)
        return request.advance(self.decoder.logits(last)[0])

    @torch.inference_mode()
    def _step(self, running: dict[int, tuple[int, Request]]) -> Iterator[tuple[int, str]]:
        """At least one step, until a request is done or the others want to be looked at."""
        requests = list(running.values())
        last = torch.stack([request.ids[request.length - 1] for _, request in requests])
        slots, starts = tuple(running), tuple(request.length - 1 for _, request in requests)
        ahead = self.steps_ahead
        if ahead is None or not ahead.begin(last, slots, starts, self._decoder(len(slots))):
            yield from self._try_drafts(requests, last, slots, starts)
            return
        if all(request.is_greedy for _, request in requests):
            yield from self._run_ahead(requests, starts)
            return
        ahead.launch()
        self._count(starts)
        for i, (number, request) in enumerate(requests):
            yield number, request.advance(ahead.logits[i])

    def _try_drafts(
        self, requests: Sequence[tuple[int, Request]], last: Tensor, slots: tuple[int, ...], starts: tuple[int, ...]
    ) -> Iterator[tuple[int, str]]:
        """One step over the latest token of each sequence, and as many that may follow as are expected to pay.

        Keys and values of those that were wrong stay in the cache, behind the sequence, until others take their place.
        """
        drafts = [request.draft() for _, request in requests]
        room = min(MAX_ROWS // len(requests), *(request.left for _, request in requests)) - 1
        tried = best_length(drafts, room, self._costs)
        ids = last[:, None].repeat(1, 1 + tried)  # where nothing is drafted, a row that nobody looks at
        for row, draft in zip(ids, drafts, strict=True):
            row[1 : 1 + len(draft.tokens)] = torch.tensor(draft.tokens[:tried], dtype=torch.int64)
        began = time.perf_counter()
        logits = self.decode(ids, slots, starts).view(len(requests), 1 + tried, -1)
        self._costs.learn(ids.numel(), time.perf_counter() - began)
        for (number, request), draft, rows, taken in zip(requests, drafts, logits, ids.tolist(), strict=True):
            first = request.length
            for at, scores in enumerate(rows, start=1):
                yield number, request.advance(scores)
                if request.done or at > tried or request.ids[request.length - 1] != taken[at]:
                    break
            came = request.ids[first : request.length].tolist()
            self.surplus += 1 + tried - len(came)
            if request.lookup is not None:
                request.lookup.judge(draft, came, min(tried, len(draft.tokens)))

    def _run_ahead(self, requests: Sequence[tuple[int, Request]], starts: tuple[int, ...]) -> Iterator[tuple[int, str]]:
        """Steps until a request is done, launched before the host has read those before them."""
        ahead = self.steps_ahead
        assert ahead is not None
        most, launched = min(request.left for _, request in requests), 0
        for number in range(most):
            while launched < min(number + 1 + ahead.late, most):
                ahead.launch()
                launched += 1
            tokens, peaks = ahead.read(number)
            self._count(tuple(start + number for start in starts))
            for (own, request), token, peak in zip(requests, tokens, peaks, strict=True):
                yield own, request.advance_to(token, peak)
            if any(request.done for _, request in requests):
                ahead.keep(number + 1)
                return
