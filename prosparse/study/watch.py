"""A decoder whose FFNs can be looked into, and changed, while it reads: its prefill needs nothing else of a block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from ..engine import Engine
from ..engine.session import Session
from ..errors import UnsupportedError
from ..model.decoder import Decoder
from ..sparsity import PlainFFN
from ..sparsity.ffn import GatedFFN

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
        if not isinstance(ffn, GatedFFN | PlainFFN):
            raise UnsupportedError(f"measure: {type(ffn).__name__} is no FFN that can be looked into")
        found.append(ffn)
    return found


def pre_activation(ffn: AnyFFN, x: Tensor) -> Tensor:
    """What the activation of a block's gate gets for inputs [tokens, hidden], [tokens, neurons] float32."""
    bias = ffn.gate_bias if isinstance(ffn, PlainFFN) else None
    return linear(x, ffn.gate.values(), bias)


def rows_bytes(ffn: AnyFFN) -> int:
    """Bytes of the matrices of a block whose rows only active neurons need: up, where there is one, and down."""
    return ffn.down.nbytes + (0 if isinstance(ffn, PlainFFN) else ffn.up.nbytes)


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
