"""Stand-ins for what decodes ahead of the host on a GPU: a step that calls the decoder, a graph that calls the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prosparse.model.cache import KVCache
from prosparse.model.decoder import Decoder
from prosparse.model.step import Part


class CalledAgain:
    """A graph whose replay calls the function."""

    def capture(self, function: Callable[[], None]) -> None:
        function()  # as a warm-up does, of whose traces nothing may remain
        self.replay = function


class DecoderStep:
    """`model.step.DeviceStep` by way of `Decoder.decode`, on any device."""

    def __init__(self, decoder: Decoder, cache: KVCache, tally: Tensor, sequences: int) -> None:
        self.decoder, self.cache, self.tally = decoder, cache, tally
        self.ids = torch.zeros(sequences, dtype=torch.int64)
        self.slots, self.starts = (torch.zeros(sequences, dtype=torch.int32) for _ in range(2))
        self.peaks, self.logits = torch.zeros(sequences), torch.empty(0)
        self.parts = [Part(self)]
        self.calls = 0

    def place(self, slots: tuple[int, ...], starts: tuple[int, ...]) -> None:
        self.slots.copy_(torch.tensor(slots)), self.starts.copy_(torch.tensor(starts))

    def take(self, ids: Tensor) -> None:
        self.ids.copy_(ids)

    def __call__(self) -> None:
        self.calls += 1
        slots, starts = tuple(self.slots.tolist()), tuple(self.starts.tolist())
        hidden = self.decoder.decode(self.ids[:, None], slots, starts, self.cache, self.tally)
        self.logits = self.decoder.logits(hidden)
        torch.max(self.logits, dim=-1, out=(self.peaks, self.ids))
        self.starts.add_(1)
