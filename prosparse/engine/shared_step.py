"""A decode step of a model on two devices: what the fast one does, in pieces that a graph can replay, and the host's.

Pieces of the fast device that follow each other are one part. So the host launches two for a layer that both share: up
to what it needs of it, and the hot neurons, beside which it computes its own. What joins the two begins the next part,
with all that follows up to the next shared layer:

    fast   add, attention, ... input and lists sent | hot neurons                | add, attention, ...
    host                                             waits, computes, puts its sum
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from prosparse.kernels.tally import SHARED_SIZE

from ..model.cache import KVCache
from ..model.decoder import Decoder, Run
from ..model.step import Launches, Part
from ..model.tiers import SLOW, Tier
from ..sparsity import HybridFFN
from ..sparsity.hybrid import Turn
from ..sparsity.mailbox import Mailbox, Mark
from .tallies import Tally, parts_of


@dataclass(frozen=True, eq=False)
class State:
    """What a piece leaves for the next one. A recorded one finds it where it was when it was recorded.

    Args:
        residual: where the next piece wants it, [sequences, hidden] float32.
        turn: of a shared FFN that is being computed.
        sent: waits for what was sent to the host last.
    """

    residual: Tensor
    turn: Turn | None = None
    sent: Callable[[], list[Tensor]] | None = None


Piece = Callable[[State], State]


class SharedStep:
    """Steps of some sequences, one new token each.

    Args:
        decoder: the network, on two tiers; the host computes on the slow one.
        cache: of the sequences.
        tally: from `Decoder.new_tally`; what each FFN did is added.
        sequences: how many.
        launches: what the fast device does of layers that are not shared: see `model.step.Launches`.
        new_mark: see `Mailbox`.

    Attributes:
        ids, peaks, logits: see `model.step.DeviceStep`; they are where lm_head is.
        parts: what a step consists of.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        tally: Tally,
        sequences: int,
        launches: Callable[..., Launches] = Launches,
        new_mark: Callable[[], Mark] | None = None,
    ) -> None:
        head = decoder.tiers.head.device
        self._decoder, self._cache = decoder, cache
        self._fast = next(tier for tier in decoder.tiers.layers if tier.name != SLOW)
        self._launches = launches(decoder, cache, self._fast, sequences)
        self._new_mailbox = partial(Mailbox, self._fast.device, new_mark)
        self.ids = torch.zeros(sequences, dtype=torch.int64, device=head)
        self.peaks, self.logits = torch.zeros(sequences, device=head), torch.empty(0, device=head)
        self._nothing = torch.zeros(sequences, decoder.config.hidden)
        self._next_ids: Callable[[], list[Tensor]] = lambda: [self.ids]  # where the embedding is the host's
        self._slots: tuple[int, ...] = ()
        self._starts: tuple[int, ...] = ()
        self._pieces: list[tuple[bool, Piece]] = []  # and whether each is the host's
        self._lay_out(parts_of(tally))
        joined = [(on_host, [piece for _, piece in own]) for on_host, own in groupby(self._pieces, itemgetter(0))]
        self._states = [State(self._nothing)] * (len(joined) + 1)
        self.parts: Sequence[Part] = [
            Part(partial(self._run, at, own), on_host) for at, (on_host, own) in enumerate(joined)
        ]

    def place(self, slots: tuple[int, ...], starts: tuple[int, ...]) -> None:
        """See `DeviceStep`."""
        self._slots, self._starts = slots, starts
        self._launches.slots.copy_(torch.tensor(slots, dtype=torch.int32))
        self._launches.starts.copy_(torch.tensor(starts, dtype=torch.int32))

    def take(self, ids: Tensor) -> None:
        """See `DeviceStep`."""
        self.ids.copy_(ids)
        self._next_ids = lambda: [ids]

    def _run(self, part: int, pieces: Sequence[Piece]) -> None:
        """A part, always from the state before it to that behind it: it runs twice where it is recorded."""
        state = self._states[part]
        for piece in pieces:
            state = piece(state)
        self._states[part + 1] = state

    # What follows what.

    def _on_fast(self, piece: Callable[..., State], *given: object) -> None:
        self._pieces.append((False, partial(piece, *given)))

    def _on_host(self, piece: Callable[..., State], *given: object) -> None:
        self._pieces.append((True, partial(piece, *given)))

    def _lay_out(self, tally: Sequence[Tensor]) -> None:
        tiers, runs = self._decoder.tiers, self._decoder.runs
        last = {run.tier: run for run in runs}
        if tiers.embed == self._fast:
            self._on_fast(self._embed)
        else:
            self._on_host(self._embed_on_host)
        for number, (run, own) in enumerate(zip(runs, tally, strict=True)):
            self._lay_out_way(runs[number - 1].tier if number else tiers.embed, run.tier)
            if run.tier == self._fast:
                self._lay_out_run(run, own)
            else:
                self._on_host(self._through, run, own)
            if run is last[run.tier]:
                (self._on_fast if run.tier == self._fast else self._on_host)(self._advance, run.tier)
        self._lay_out_way(runs[-1].tier, tiers.head)
        if tiers.head != self._fast:
            self._on_host(self._choose_on_host)
            return
        self._on_fast(self._choose)
        if tiers.embed != self._fast:
            box = self._new_mailbox()
            self._on_fast(self._send_ids, box)
            self._on_host(self._mark, box, ["ids"])
            self._on_host(self._expect_ids)

    def _lay_out_way(self, here: Tier, there: Tier) -> None:
        """Of the residual from tier to tier."""
        box = self._new_mailbox()
        if here == there:
            return
        if there == self._fast:
            self._on_host(self._put, box)
            self._on_fast(self._fetch, box)
        else:
            self._on_fast(self._send, box)
            self._on_host(self._mark, box, ["residual"])
            self._on_host(self._receive)

    def _lay_out_run(self, run: Run, tally: Tensor) -> None:
        """Layers whose attention is on the fast device."""
        box, is_shared = self._new_mailbox(), run.counters == SHARED_SIZE
        counts = box.place("counts", tally.shape, tally.dtype) if is_shared else tally
        for layer, own, of_host in zip(range(run.first, run.end), tally, counts, strict=True):
            self._on_fast(self._attend, layer)
            if is_shared:
                self._lay_out_shared(layer, own, of_host)
            else:
                self._on_fast(self._ffn, layer, own)
        if is_shared:
            self._on_fast(self._add_counts, box, tally)

    def _lay_out_shared(self, layer: int, tally: Tensor, counts: Tensor) -> None:
        """The FFN of a layer that both devices share."""
        ffn, box = self._decoder.blocks[layer][1], self._new_mailbox()
        assert isinstance(ffn, HybridFFN), "only such an FFN has a second tier beside it"
        self._on_fast(self._send_input, ffn, box)
        if ffn.starts_early:
            self._on_host(self._mark, box, ["input"])
            self._on_fast(self._send_lists, ffn, box)
            self._on_host(self._mark, box, ["handed"])
        else:
            self._on_fast(self._send_lists, ffn, box)
            self._on_host(self._mark, box, ["input", "named", "handed"])
        if ffn.has_hot:
            self._on_fast(self._compute_hot, ffn, tally)
        self._on_host(self._compute_cold, ffn, box, counts)
        self._on_fast(self._add_cold, ffn, box)

    # Pieces of the fast device: launches alone, and what they read and leave stays where it is.

    def _embed(self, state: State) -> State:
        return State(self._launches.embed(self.ids))

    def _fetch(self, box: Mailbox, state: State) -> State:
        self._launches.enter()
        return State(box.fetch("residual"))

    def _attend(self, layer: int, state: State) -> State:
        return State(self._launches.attention(state.residual, layer))

    def _ffn(self, layer: int, tally: Tensor, state: State) -> State:
        return State(self._launches.ffn(state.residual, layer, tally))

    def _send_input(self, ffn: HybridFFN, box: Mailbox, state: State) -> State:
        return replace(state, turn=ffn.send_input(state.residual, box))

    def _send_lists(self, ffn: HybridFFN, box: Mailbox, state: State) -> State:
        return replace(state, turn=ffn.send_lists(state.residual, _turn(state), box))

    def _compute_hot(self, ffn: HybridFFN, tally: Tensor, state: State) -> State:
        return replace(state, residual=ffn.compute_hot(state.residual, _turn(state), tally))

    def _add_cold(self, ffn: HybridFFN, box: Mailbox, state: State) -> State:
        return State(ffn.add_cold(state.residual, box.fetch("output")))

    def _add_counts(self, box: Mailbox, tally: Tensor, state: State) -> State:
        tally += box.fetch("counts")
        return state

    def _send(self, box: Mailbox, state: State) -> State:
        return replace(state, sent=box.send("residual", [state.residual]))

    def _choose(self, state: State) -> State:
        self.logits, ids, peaks = self._launches.choose(state.residual)
        self.ids.copy_(ids)
        self.peaks.copy_(peaks)
        return state

    def _send_ids(self, box: Mailbox, state: State) -> State:
        return replace(state, sent=box.send("ids", [self.ids]))

    # Of either.

    def _advance(self, tier: Tier, state: State) -> State:
        if tier == self._fast:
            self._launches.starts.add_(1)
        else:
            self._starts = tuple(start + 1 for start in self._starts)
        return state

    # Pieces of the host.

    def _embed_on_host(self, state: State) -> State:
        return State(self._decoder.embed_tokens(self._next_ids()[0]))

    def _put(self, box: Mailbox, state: State) -> State:
        box.place("residual", state.residual.shape, state.residual.dtype).copy_(state.residual)
        return state

    def _through(self, run: Run, tally: Tensor, state: State) -> State:
        step = self._decoder.step_of(run.tier, self._slots, self._starts)
        return State(self._decoder.through(run, state.residual, step, self._cache, tally))

    def _mark(self, box: Mailbox, names: Sequence[str], state: State) -> State:
        box.mark(*names)
        return state

    def _receive(self, state: State) -> State:
        assert state.sent is not None, "the piece before this one has sent it"
        return State(state.sent()[0])

    def _compute_cold(self, ffn: HybridFFN, box: Mailbox, counts: Tensor, state: State) -> State:
        turn = _turn(state)
        turn.input_there()  # then what the step before counted has been fetched
        there = ffn.compute_cold(turn, counts.zero_())
        place = box.place("output", self._nothing.shape, self._nothing.dtype)
        place.copy_(self._nothing if there is None else there)
        return state

    def _choose_on_host(self, state: State) -> State:
        self.logits = self._decoder.logits(self._decoder.finish(state.residual))
        torch.max(self.logits, dim=-1, out=(self.peaks, self.ids))
        self._next_ids = lambda: [self.ids]
        return state

    def _expect_ids(self, state: State) -> State:
        assert state.sent is not None, "the piece before this one has sent them"
        self._next_ids = state.sent
        return state


def _turn(state: State) -> Turn:
    assert state.turn is not None, "the input of a shared FFN comes first"
    return state.turn
