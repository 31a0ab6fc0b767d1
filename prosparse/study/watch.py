"""What studies ask of an FFN block beside a look into it, which is the engine's."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from ..engine.watch import AnyFFN, View, WatchedFFN, open_ffns, read_window, watched
from ..sparsity import PlainFFN

__all__ = ["AnyFFN", "View", "WatchedFFN", "open_ffns", "pre_activation", "read_window", "rows_bytes", "watched"]


def pre_activation(ffn: AnyFFN, x: Tensor) -> Tensor:
    """What the activation of a block's gate gets for inputs [tokens, hidden], [tokens, neurons] float32."""
    bias = ffn.gate_bias if isinstance(ffn, PlainFFN) else None
    return linear(x, ffn.gate.values(), bias)


def rows_bytes(ffn: AnyFFN) -> int:
    """Bytes of the matrices of a block whose rows only active neurons need: up, where there is one, and down."""
    return ffn.down.nbytes + (0 if isinstance(ffn, PlainFFN) else ffn.up.nbytes)
