"""A decoder whose FFNs can be looked into, and changed, while it reads: its prefill needs nothing else of a block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ..errors import UnsupportedError
from ..model.decoder import Decoder
from ..sparsity import PlainFFN
from ..sparsity.ffn import GatedFFN
from .engine import Engine
from .session import Session

AnyFFN = GatedFFN | PlainFFN
# Called with (layer, residual, normed input [tokens, hidden], act(gate), act(gate) * up [tokens, neurons]); what it
# returns goes into down in place of the last, None changes nothing.
View = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor | None]


class WatchedFFN:
    """The prefill of an FFN block, looked at."""

    def __init__(self, ffn: AnyFFN, layer: int, view: View) -> None:
        self._ffn, self._layer, self._view = ffn, layer, view

    def prefill(self, residual: Tensor) -> Tensor:
        return self._ffn.prefill(residual, self._changed)

    def _changed(self, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> Tensor:
        changed = self._view(self._layer, residual, x, value, h)
        return h if changed is None else changed


def open_ffns(engine: Engine) -> list[AnyFFN]:
    """The FFN block of every layer. Raises UnsupportedError for one that cannot be looked into."""
    found: list[AnyFFN] = []
    for _, ffn in engine.decoder.blocks:
        if engine.config.experts:
            raise UnsupportedError(
                f"measure: layers of this {engine.config.family} model hold {engine.config.experts} experts, each of "
                "which sees only some tokens; models with one FFN in each layer can be looked into"
            )
        if not isinstance(ffn, GatedFFN | PlainFFN):
            raise UnsupportedError(f"measure: {type(ffn).__name__} is no FFN that can be looked into")
        found.append(ffn)
    return found


def watched(decoder: Decoder, ffns: Sequence[AnyFFN], view: View) -> Decoder:
    """The same decoder with `view` on these FFNs; for prefill alone."""
    blocks: list[Any] = [
        (attention, WatchedFFN(ffn, layer, view))
        for layer, ((attention, _), ffn) in enumerate(zip(decoder.blocks, ffns, strict=True))
    ]
    seen = copy.copy(decoder)
    seen.blocks = blocks
    return seen


def read_window(engine: Engine, decoder: Decoder, window: Tensor) -> Iterator[Tensor]:
    """Prefill one window [tokens] from nothing; yields final hidden states chunk by chunk."""
    yield from Session(decoder, engine.kv_dtype, 1, len(window)).prefill(window)
