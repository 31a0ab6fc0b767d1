"""`kernels.decode_layers` for a step that may become a CUDA graph: one new token a sequence, five launches a layer.

    linear (norm in front)  attend_step  linear (residual behind)  select (norm in front)  down (residual behind)

Nothing is decided on the host: where sequences lie and how long they are is read on the device. Above `ROW_TOKENS`
tokens each norm is a launch of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..decode_layers import Glu
from ..weight import Weight
from . import attend_step, glu_dense, glu_exact, linear


@dataclass(frozen=True, eq=False)
class Place:
    """Where the tokens of a step stand.

    Args:
        keys, values: the cache, [layers, slots, kv_heads, context, head_dim].
        cos, sin: angles of every position, [context, head_dim / 2] float32.
        slots, starts: of each sequence, its place in the cache and how many tokens it has there, [sequences] int32.
        tickets: [layers, n] int32; `embed` zeroes them in every step.
    """

    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    starts: Tensor
    tickets: Tensor


def new_tickets(heads: int, keys: Tensor, sequences: int) -> Tensor:
    """Tickets of every layer of a cache, for so many sequences."""
    size = -(-attend_step.tickets_of(heads, keys.shape[2], sequences) // 4) * 4  # every layer's start on 16 bytes
    return torch.zeros(keys.shape[0], size, dtype=torch.int32, device=keys.device)


def attention(
    residual: Tensor, layer: int, place: Place, norm: Tensor, qkv: Weight, bias: Tensor | None, o: Weight, eps: float,
    scale: float, window: int, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """residual + scale * o(attend(rotary_store(qkv(rms_norm(residual)) + bias))), [sequences, hidden] float32.

    With `overlap` every launch but those of 5 and more tokens begins while the one before it ends.
    """
    heads = linear.launch(residual, qkv.codes, (norm, eps), overlap=overlap)
    attended = attend_step.launch(
        heads, bias, place.cos, place.sin, place.keys[layer], place.values[layer], place.slots, place.starts, window,
        place.tickets[layer], overlap,
    )  # fmt: skip
    return linear.launch(attended, o.codes, None, (residual, scale), overlap)


def ffn(residual: Tensor, glu: Glu, eps: float, scale: float, tally: Tensor, overlap: bool = False) -> Tensor:
    """residual + scale * ffn(rms_norm(residual)), for an FFN without guess."""
    launch = glu_dense.launch if glu.dense else glu_exact.launch
    kind = glu.activation
    return launch(
        residual, glu.gate.codes, glu.up.codes, glu.down.codes, kind.code, kind.threshold, kind.on_up, tally,
        (glu.norm, eps), (residual, scale), overlap,
    )  # fmt: skip
