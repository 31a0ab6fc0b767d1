"""Times one decoder in several modes: whole tokens, from the embedding to the choice of the next token.

All modes share one set of weights in one process and see the same tokens, which are given rather than sampled, so that
they do the same work. A token's floor counts what it must read: every dense matrix, the cache, and of up and down the
rows of its active neurons (all of them in mode dense).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from prosparse.engine.load import FFN_OF_MODE
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity, bytes_per_token
from prosparse.errors import UserError
from prosparse.model.attention import Attention
from prosparse.model.decoder import Decoder
from prosparse.sparsity.ffn import GatedFFN

from .check import check_ffn, clear_input, in_lockstep, require_same_logits
from .clock import Timing, interleave
from .probe import Probe
from .row import Row, against_dense, floor, make_row, times

Progress = Callable[[str, int, int], None]  # stage, done, total
CHECKED = 2  # decode steps compared before timing


@dataclass(frozen=True)
class Run:
    """How long to measure.

    Args:
        pp: prompt tokens before the first timed one.
        tg: decode tokens timed per mode.
        repeat: how many times those.
        budget_s: stop early after that many seconds of timing.
    """

    pp: int = 16
    tg: int = 64
    repeat: int = 1
    budget_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("pp", "tg", "repeat"):
            if getattr(self, name) < 1:
                raise UserError(f"bench: {name} must be at least 1, got {getattr(self, name)}")
        if self.tg < CHECKED:
            raise UserError(f"bench: tg must be at least {CHECKED}, got {self.tg}")


def time_decoder(
    decoder: Decoder, tokens: Tensor, modes: Sequence[str], run: Run, progress: Progress | None = None, **labels: object
) -> list[Row]:
    """Check, then time, one decoder in several modes.

    Args:
        decoder: the model, on the CPU, in any mode; the others are built over its weights.
        tokens: [pp + tg] int64, what the model is given.
        modes: see `compare`.
        run: how long.
        progress: called with (stage, done, total).
        labels: further keys of the rows.

    Returns:
        One row per mode.
    """
    decoders = {mode: in_mode(decoder, mode) for mode in modes}
    if progress is not None:
        progress("checking", 0, 1)
    check(decoders, tokens[: run.pp + CHECKED], run.pp)
    sessions = {mode: _prefilled(each, tokens[: run.pp], tokens.numel()) for mode, each in decoders.items()}

    def token_of(session: Session) -> Callable[[int], int]:
        def call(number: int) -> int:
            at = run.pp + number % run.tg
            return int(session.decode(tokens[at].view(1, 1), (0,), (at,)).argmax())

        return call

    calls: dict[str, Callable[[int], object]] = {mode: token_of(session) for mode, session in sessions.items()}
    timings = interleave(
        {**calls, "probe": Probe()}, run.tg * run.repeat, budget_s=run.budget_s, progress=stage(progress, "timing")
    )
    return [_row(mode, decoders[mode], sessions[mode], timings, run, labels) for mode in decoders]


def in_mode(decoder: Decoder, mode: str) -> Decoder:
    """The same model over the same weights with other FFN blocks."""
    if mode not in FFN_OF_MODE:
        raise UserError(f"bench: mode is {mode!r}; supported are {', '.join(FFN_OF_MODE)}")
    activation = decoder.config.activation
    if mode == "exact" and not activation.makes_zeros:
        raise UserError(f"bench: {activation} makes no exact zeros, so there is no mode exact; use --modes dense")
    make: Callable[..., GatedFFN] = FFN_OF_MODE[mode]
    blocks = [
        (attention, make(f.norm, f.norm_eps, f.gate, f.up, f.down, f.activation, f.scale))
        for attention, f in gated_blocks(decoder)
    ]
    return decoder.with_blocks(blocks)


def gated_blocks(decoder: Decoder) -> list[tuple[Attention, GatedFFN]]:
    """The blocks of a decoder made by `assemble`, whose FFNs must all be gated, and without experts."""
    if not decoder.config.gated or decoder.config.experts:
        raise UserError("bench: times models with one gated FFN in each layer; this one has others")
    return cast("list[tuple[Attention, GatedFFN]]", list(decoder.blocks))


def check(decoders: dict[str, Decoder], tokens: Tensor, pp: int) -> None:
    """Raise MachineError unless ops, blocks and whole tokens agree."""
    first = next(iter(decoders.values()))
    for mode, decoder in decoders.items():
        _, ffn = gated_blocks(decoder)[0]
        check_ffn(mode, ffn.gate, ffn.up, ffn.down, ffn.activation, clear_input(ffn.gate, ffn.activation))
    _logits(in_lockstep(decoders), tokens, pp)
    expected = _logits(first, tokens, pp)
    for mode, decoder in list(decoders.items())[1:]:
        require_same_logits(f"mode {mode}", _logits(decoder, tokens, pp), expected)


def _row(
    mode: str, decoder: Decoder, session: Session, timings: dict[str, Timing], run: Run, labels: dict[str, object]
) -> Row:
    timing, config = timings[mode], decoder.config
    sparsity = activation_sparsity(session, config.neurons)
    held = sum(
        a.qkv.nbytes + a.o.nbytes + f.gate.nbytes + f.up.nbytes + f.down.nbytes for a, f in gated_blocks(decoder)
    )
    row = make_row(
        subject="decode",
        layers=config.layers,
        mode=mode,
        weights=decoder.lm_head.format,
        context=run.pp + run.tg,
        activation_sparsity=sparsity and sparsity["mean"],
        tokens_per_s=round(1e6 / timing.median, 2),
        tpot_ms=round(timing.median / 1e3, 3),
        repeat=run.repeat,
        **times(timing),
        **floor(bytes_per_token(session, decoder) or 0, held + decoder.lm_head.nbytes, timings["probe"], timing),
        **against_dense(timings, mode),
        **labels,
    )
    if row["floor_us"] is not None:
        row["floor_tokens_per_s"] = round(1e6 / row["floor_us"], 2)
    return row


def _prefilled(decoder: Decoder, prompt: Tensor, context: int) -> Session:
    kv_dtype = torch.float32 if decoder.lm_head.format == "fp32" else torch.bfloat16
    session = Session(decoder, kv_dtype, 1, context)
    for _ in session.prefill(prompt):
        pass
    return session


def _logits(decoder: Decoder, tokens: Tensor, pp: int) -> Tensor:
    session = _prefilled(decoder, tokens[:pp], tokens.numel())
    return torch.cat([session.decode(tokens[at].view(1, 1), (0,), (at,)) for at in range(pp, tokens.numel())])


def stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """The progress of one stage, for what knows only (done, total)."""
    return None if progress is None else lambda done, total: progress(name, done, total)
