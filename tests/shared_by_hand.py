"""Stand-ins for a GPU that shares a model with the host: what it launches, and graphs that it replays when it likes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prosparse.engine.shared_step import SharedStep, State
from prosparse.model.cache import KVCache
from prosparse.model.decoder import Decoder
from prosparse.model.tiers import Tier


class LaunchesByHand:
    """`model.step.Launches` by way of the decoder's blocks, on any device."""

    def __init__(self, decoder: Decoder, cache: KVCache, tier: Tier, sequences: int) -> None:
        self.decoder, self.cache, self.tier = decoder, cache, tier
        self.slots, self.starts = (torch.zeros(sequences, dtype=torch.int32) for _ in range(2))
        self.entered = 0

    def embed(self, ids: Tensor) -> Tensor:
        return self.decoder.embed_tokens(ids)

    def enter(self) -> None:
        self.entered += 1

    def attention(self, residual: Tensor, layer: int) -> Tensor:
        step = self.decoder.step_of(self.tier, tuple(self.slots.tolist()), tuple(self.starts.tolist()))
        return self.decoder.blocks[layer][0](residual, step, self.cache)

    def ffn(self, residual: Tensor, layer: int, tally: Tensor) -> Tensor:
        return self.decoder.blocks[layer][1].decode(residual, tally)

    def choose(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.decoder.logits(self.decoder.finish(residual))
        peaks, ids = logits.max(dim=-1)
        return logits, ids, peaks


class Lazy:
    """A device that does nothing of what it is given until somebody waits for it."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.done = 0

    def give(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def do(self, until: int) -> None:
        """All that it was given up to a point."""
        while self.done < until:
            self.done += 1
            self.waiting[self.done - 1]()

    def finish(self) -> None:
        self.do(len(self.waiting))


class LazyGraph:
    """A graph of a part of a step that such a device replays; what it leaves lies where it lay when it was recorded."""

    def __init__(self, device: Lazy, step: SharedStep) -> None:
        self.device, self.states = device, step._states

    def capture(self, function: Callable[[], None]) -> None:
        self.device.finish()
        for _ in range(2):  # a warm-up, and what stays
            function()
        self.function, self.behind = function, function.args[0] + 1
        self.left = self.states[self.behind]

    def replay(self) -> None:
        self.device.give(self._replay)

    def _replay(self) -> None:
        self.function()
        for kept, new in zip(tensors_of(self.left), tensors_of(self.states[self.behind]), strict=True):
            if kept.data_ptr() != new.data_ptr():
                kept.copy_(new)
        self.states[self.behind] = self.left


def tensors_of(state: State) -> list[Tensor]:
    """Of the device, what the next part finds."""
    turn = state.turn
    listed = [] if turn is None or turn.predicted is None else [turn.predicted.index, turn.predicted.count]
    return [state.residual, *([] if turn is None else [turn.x]), *listed]


class LazyMark:
    """A point in what it has been given."""

    def __init__(self, device: Lazy) -> None:
        self.device, self.at = device, 0

    def record(self) -> None:
        self.at = len(self.device.waiting)

    def synchronize(self) -> None:
        self.device.do(self.at)
