"""Times one decoder in several modes: whole steps, from the embedding to the choice of the next tokens.

All modes share one set of weights in one process and see the same tokens, which are given rather than sampled, so that
they do the same work. A step's floor counts what it must read: every dense matrix, the cache, and of up and down the
rows of its active neurons (all of them in mode dense). Other engines (`adapters`) take turns with the modes, of several
tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from prosparse.engine.load import FFN_OF_MODE
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity, bytes_per_token
from prosparse.errors import UserError
from prosparse.kernels.checks import MAX_ROWS
from prosparse.model.attention import Attention
from prosparse.model.decoder import FFN, Decoder
from prosparse.sparsity import PlainFFN
from prosparse.sparsity.ffn import GatedFFN
from prosparse.sparsity.of_layer import PLAIN_OF_MODE

from .adapters import ADAPTERS, adapter_row, check_names, ready, take_turns
from .check import check_block, in_lockstep, require_same_logits
from .clock import Timing
from .probe import Probe
from .progress import Progress, stage
from .row import Row, floor, make_row, measured

CHECKED = 2  # decode steps compared before timing


@dataclass(frozen=True)
class Run:
    """How long to measure.

    Args:
        pp: prompt tokens before the first timed one.
        tg: decode tokens timed per mode.
        repeat: how many times those.
        budget_s: stop early after that many seconds of timing.
        batch: sequences that decode together, 1 to 16.
        against: names of `adapters.ADAPTERS` that take turns with the modes.
    """

    pp: int = 16
    tg: int = 64
    repeat: int = 1
    budget_s: float | None = None
    batch: int = 1
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("pp", "tg", "repeat", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"bench: {name} must be at least 1, got {getattr(self, name)}")
        if self.tg < CHECKED:
            raise UserError(f"bench: tg must be at least {CHECKED}, got {self.tg}")
        if self.batch > MAX_ROWS:
            raise UserError(f"bench: batch must be at most {MAX_ROWS}, got {self.batch}")
        if self.against and self.batch > 1:
            raise UserError("bench: other engines are timed with one sequence; leave --batch out")


def time_decoder(
    decoder: Decoder, tokens: Tensor, modes: Sequence[str], run: Run, progress: Progress | None = None, **labels: object
) -> list[Row]:
    """Check, then time, one decoder in several modes.

    Args:
        decoder: the model, on the CPU, in any mode; the others are built over its weights.
        tokens: [batch, pp + tg] int64, what the model is given.
        modes: see `compare`.
        run: how long.
        progress: called with (stage, done, total).
        labels: further keys of the rows.

    Returns:
        One row per mode and per other engine.
    """
    decoders = {mode: in_mode(decoder, mode) for mode in modes}
    if progress is not None:
        progress("checking", 0, 1)
    logits = check(decoders, tokens[:, : run.pp + CHECKED], run.pp)
    sessions = {mode: prefilled(each, tokens[:, : run.pp], tokens.shape[1]) for mode, each in decoders.items()}
    slots = tuple(range(run.batch))

    def step_of(session: Session) -> Callable[[int], object]:
        def call(number: int) -> list[int]:
            at = run.pp + number % run.tg
            return likeliest(session.decode(tokens[:, at : at + 1], slots, (at,) * run.batch))

        return call

    steps = {mode: step_of(session) for mode, session in sessions.items()}
    others = {name: ADAPTERS[name](decoder, tokens.shape[1]) for name in check_names(run.against)}
    theirs = {name: ready(other, tokens[0], run.pp, run.tg, logits) for name, other in others.items()}
    timings = take_turns(steps, theirs, Probe(), run.tg * run.repeat, run.budget_s, stage(progress, "timing"))
    rows = [decode_row(mode, decoders[mode], sessions[mode], timings, run, labels) for mode in decoders]
    config, itemsize = decoder.config, next(iter(sessions.values())).cache.keys.element_size()
    cached = 2 * config.layers * config.kv_heads * config.head_dim * itemsize * (run.pp + (run.tg + 1) / 2)
    labels |= {"layers": config.layers, "context": tokens.shape[1], "repeat": run.repeat}
    return rows + [adapter_row(name, other, timings, cached, **labels) for name, other in others.items()]


def likeliest(logits: Tensor) -> list[int]:
    """The likeliest tokens, as the engine finds them; argmax would wake PyTorch's threads, which slow the next step."""
    return [int(row.max(dim=0).indices) for row in logits]


def in_mode(decoder: Decoder, mode: str) -> Decoder:
    """The same model over the same weights with other FFN blocks."""
    if mode not in FFN_OF_MODE:
        raise UserError(f"bench: mode is {mode!r}; supported are {', '.join(FFN_OF_MODE)}")
    activation = decoder.config.activation
    if mode == "exact" and not activation.makes_zeros:
        raise UserError(f"bench: {activation} makes no exact zeros, so there is no mode exact; use --modes dense")
    return decoder.with_blocks([(attention, _in_mode(ffn, mode)) for attention, ffn in decoder.blocks])


def _in_mode(ffn: FFN, mode: str) -> FFN:
    if isinstance(ffn, GatedFFN):
        make: Callable[..., GatedFFN] = FFN_OF_MODE[mode]
        return make(*ffn.parts())
    if isinstance(ffn, PlainFFN):
        return PLAIN_OF_MODE[mode](*ffn.parts())
    return ffn  # experts are dense: `in_mode` has refused what their activation cannot do


def gated_blocks(decoder: Decoder) -> list[tuple[Attention, GatedFFN]]:
    """The blocks of a decoder made by `assemble`, whose FFNs must all be gated, and without experts."""
    if not decoder.config.gated or decoder.config.experts:
        raise UserError("bench: this subject needs one gated FFN in each layer; use --subject decode")
    return cast("list[tuple[Attention, GatedFFN]]", list(decoder.blocks))


def check(decoders: dict[str, Decoder], tokens: Tensor, pp: int) -> Tensor:
    """Raise MachineError unless ops, blocks and whole steps agree; returns the logits, [steps * batch, vocab]."""
    first = next(iter(decoders.values()))
    for mode, decoder in decoders.items():
        check_block(mode, decoder.blocks[0][1])
    step_logits(in_lockstep(decoders), tokens, pp)
    expected = step_logits(first, tokens, pp)
    for mode, decoder in list(decoders.items())[1:]:
        require_same_logits(f"mode {mode}", step_logits(decoder, tokens, pp), expected)
    return expected


def decode_row(
    mode: str, decoder: Decoder, session: Session, timings: dict[str, Timing], run: Run, labels: dict[str, object]
) -> Row:
    """The row of one decoder of an interleaved run, in which its timing is called `mode`."""
    timing, config = timings[mode], decoder.config
    sparsity = activation_sparsity(session, config.neurons_per_token)
    must_read = (bytes_per_token(session, decoder) or 0) * run.batch
    row = make_row(
        subject="decode",
        layers=config.layers,
        mode=mode,
        weights=decoder.lm_head.format,
        batch=run.batch,
        context=run.pp + run.tg,
        activation_sparsity=sparsity and sparsity["mean"],
        tokens_per_s=round(1e6 * run.batch / timing.median, 2),
        tpot_ms=round(timing.median / 1e3, 3),
        repeat=run.repeat,
        **measured(timings, mode),
        **floor(must_read, held_bytes(decoder), timings["probe"], timing),
        **labels,
    )
    if row["floor_us"] is not None:
        row["floor_tokens_per_s"] = round(1e6 * run.batch / row["floor_us"], 2)
    return row


def held_bytes(decoder: Decoder) -> int:
    """Of all matrices that decode steps go through."""
    return sum(a.qkv.nbytes + a.o.nbytes + _held(f) for a, f in decoder.blocks) + decoder.lm_head.nbytes


def _held(ffn: Any) -> int:
    """Bytes of all matrices of a block."""
    return sum(matrix.nbytes for name in ("gate", "up", "down") if (matrix := getattr(ffn, name, None)) is not None)


def prefilled(decoder: Decoder, prompts: Tensor, context: int) -> Session:
    """A session that has read prompts, [batch, tokens]."""
    kv_dtype = torch.float32 if decoder.lm_head.format == "fp32" else torch.bfloat16
    session = Session(decoder, kv_dtype, len(prompts), context)
    for slot, prompt in enumerate(prompts):
        for _ in session.prefill(prompt, slot):
            pass
    return session


def step_logits(decoder: Decoder, tokens: Tensor, pp: int) -> Tensor:
    """Of decode steps over tokens [batch, length], of which pp are the prompt: [steps * batch, vocab]."""
    batch, length = tokens.shape
    session, slots = prefilled(decoder, tokens[:, :pp], length), tuple(range(batch))
    return torch.cat([session.decode(tokens[:, at : at + 1], slots, (at,) * batch) for at in range(pp, length)])
