"""The order of steps: prompts are prefilled as slots become free, and every step decodes all running sequences at once.

All state of a run lives here, none in the engine, so several runs may share an engine's weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from prosparse.kernels.checks import MAX_ROWS

from ..model.cache import KVCache
from ..model.decoder import Decoder
from .audit import Audit
from .request import Request

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
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_dtype: torch.dtype,
        slots: int,
        context: int,
        audit: int = 0,
        chunk: int = PREFILL_CHUNK,
    ) -> None:
        self.decoder, self.chunk = decoder, chunk
        self.cache = KVCache(decoder.config, min(slots, MAX_ROWS), context, kv_dtype, decoder.tiers.layers)
        self.tally = decoder.new_tally()
        self.audit = Audit(decoder, audit) if audit else None
        self.steps = self.decode_tokens = self.positions_read = 0

    @property
    def done(self) -> list[list[int]]:
        """What the decode steps did, per layer: see `kernels.tally`."""
        parts = [self.tally] if isinstance(self.tally, Tensor) else self.tally
        return [layer for part in parts for layer in part.tolist()]

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
        hidden = self.decoder.decode(token_ids.to(self.decoder.device), slots, starts, self.cache, self.tally, watch)
        self.steps += 1
        self.decode_tokens += token_ids.numel()
        window, rows = self.decoder.config.sliding_window, token_ids.shape[1]
        self.positions_read += sum(start + rows - (max(0, start + 1 - window) if window else 0) for start in starts)
        return self.decoder.logits(hidden)

    def run(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[tuple[int, str]]:
        """Generate every request; yields (number of the request, new text) as text becomes certain.

        `progress` is called with (prompt tokens done, prompt tokens in all) while a prompt is read.
        """
        waiting = deque(enumerate(requests))
        running: dict[int, tuple[int, Request]] = {}
        free = list(range(self.cache.slots))[::-1]
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
        done = 0
        for hidden in self.prefill(request.prompt, slot):
            last = hidden[-1:]
            done += len(hidden)
            if progress is not None:
                progress(done, request.length)
        return request.advance(self.decoder.logits(last)[0])

    def _step(self, running: dict[int, tuple[int, Request]]) -> list[tuple[int, str]]:
        requests = list(running.values())
        last = torch.stack([request.ids[request.length - 1 : request.length] for _, request in requests])
        starts = tuple(request.length - 1 for _, request in requests)
        logits = self.decode(last, tuple(running), starts)
        return [(number, request.advance(logits[i])) for i, (number, request) in enumerate(requests)]
