"""Other engines beside ours: the same shape, format and tokens, in the same interleaved run.

Turns are `TURN` tokens long, after `LEAD` that are not counted: an engine's threads spin for milliseconds after its
last token and then sleep, which is nothing that a text meets. Every engine is also timed alone, before and after all
turns, so that a row shows what taking turns did to it.

`ADAPTERS` is the table of them; a new one is a file and a line here. Each says its version, and whether it computes the
same function: then its logits must agree with ours before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prosparse.errors import MachineError, UserError
from prosparse.model.decoder import Decoder

from .clock import Samples, Timing, interleave
from .row import Row, floor, make_row, measured
from .with_llama_cpp import LlamaCpp

TURN, LEAD = 8, 2
ALONE = 16  # tokens, before the turns and after them
# Of the logits, L2: what rounding every activation to the format does over all layers, a few flipped gates included.
BOUND = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.1}


class Adapter(Protocol):
    """An engine that decodes one sequence.

    Attributes:
        title: as a person would call it, with what distinguishes it.
        versions: of its parts.
        weights: its name of the format.
        nbytes: of the weights that a token reads.
        note: what a reader of its row must know, or None.
        same_function: whether it computes what ours does.
    """

    title: str
    versions: dict[str, str]
    weights: str
    nbytes: int
    note: str | None
    same_function: bool

    def prefill(self, tokens: Tensor) -> None:
        """Begin a sequence with tokens [pp] int64."""

    def decode(self, token: Tensor, at: int) -> Tensor:
        """Logits [vocab] after one more token, [1] int64, at position `at`; an `at` of before goes back there."""


Call = Callable[[int], object]  # of the clock
Make = Callable[[Decoder, int], Adapter]  # our decoder, and the context


def _transformers(compiled: bool) -> Make:
    def make(decoder: Decoder, context: int) -> Adapter:
        from .with_transformers import Transformers  # seconds of imports, for those who ask for it

        return Transformers(decoder, context, compiled)

    return make


ADAPTERS: dict[str, Make] = {
    "transformers-eager": _transformers(compiled=False),
    "transformers-compile": _transformers(compiled=True),
    "llama-cpp": LlamaCpp,
    "llama-cpp-fp16": partial(LlamaCpp, weights="fp16"),
}


def check_names(names: Sequence[str]) -> Sequence[str]:
    """The names as they are.

    Raises:
        UserError: one that is not in the table.
    """
    for name in names:
        if name not in ADAPTERS:
            raise UserError(f"bench: no engine {name!r} to compare with; there are {', '.join(ADAPTERS)}")
    return names


def ready(adapter: Adapter, tokens: Tensor, pp: int, tg: int, expected: Tensor) -> Call:
    """A call of one token for the clock, once the prompt is read and the logits agree.

    Args:
        adapter: under test.
        tokens: [pp + tg] int64.
        pp: tokens of the prompt.
        tg: tokens that take turns after it.
        expected: our logits of the first steps, [steps, vocab].

    Raises:
        MachineError: it says that it computes the same, and does not.
    """
    adapter.prefill(tokens[:pp])
    logits = torch.stack([adapter.decode(tokens[at : at + 1], at) for at in range(pp, pp + len(expected))])
    error = float((logits - expected).norm() / expected.norm().clamp_min(1e-30))
    bound = BOUND[adapter.weights] if adapter.same_function else float("inf")
    if not error <= bound:
        raise MachineError(
            f"bench: {adapter.title} gives other logits (relative error {error:.1e}, {bound:.0e} is rounding); "
            "nothing was timed"
        )

    def call(number: int) -> int:
        at = pp + number % tg
        return int(adapter.decode(tokens[at : at + 1], at).max(dim=0).indices)  # as `modes.likeliest`

    return call


def take_turns(
    ours: Mapping[str, Call],
    theirs: Mapping[str, Call],
    probe: Call,
    tokens: int,
    budget_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Times of modes and of other engines; without these, of modes that take turns token by token.

    Args:
        ours, theirs: decode a token, by name.
        probe: reads memory; it goes between ours and theirs, after those that leave nothing running.
        tokens: of each.
        budget_s, progress: see `interleave`.

    Returns:
        By name; where there are other engines, also "NAME alone".
    """
    calls = {**ours, "probe": probe, **theirs}
    if not theirs:
        return interleave(calls, tokens, budget_s=budget_s, progress=progress)
    engines = {**ours, **theirs}
    before = _alone(engines)
    timings = interleave(calls, -(-tokens // TURN), budget_s=budget_s, progress=progress, turn=TURN, lead=LEAD)
    after = _alone(engines)
    for name in engines:
        timings[f"{name} alone"] = Timing(np.concatenate([before[name], after[name]]), ALONE)
    return timings


def _alone(calls: Mapping[str, Call]) -> dict[str, Samples]:
    return {name: interleave({name: call}, 1, turn=ALONE, lead=LEAD)[name].us for name, call in calls.items()}


def adapter_row(
    name: str, adapter: Adapter, timings: Mapping[str, Timing], cache_bytes: float, **labels: object
) -> Row:
    """The row of another engine; its bytes are those of its weights and of the cache as far as it is filled."""
    timing = timings[name]
    row = make_row(
        subject="decode",
        mode=name,
        weights=adapter.weights,
        activation_sparsity=None,
        tokens_per_s=round(1e6 / timing.median, 2),
        tpot_ms=round(timing.median / 1e3, 3),
        **measured(timings, name),
        **floor(adapter.nbytes + cache_bytes, adapter.nbytes, timings["probe"], timing),
        **labels,
    )
    row["versions"] |= adapter.versions
    row["note"] = "; ".join(filter(None, [row["note"], adapter.note])) or None
    return row
