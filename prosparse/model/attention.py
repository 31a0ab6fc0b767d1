"""Causal grouped-query attention over the cache (Ainslie et al., "GQA", 2023), as a block of the decoder.

Each sequence is computed by itself, so its result does not depend on which others share the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prosparse.kernels.add_scaled import add_scaled
from prosparse.kernels.attend import attend, visible
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.decode_layers import Glu, Layer
from prosparse.kernels.layer_norm import normalize
from prosparse.kernels.linear import linear, working_dtype
from prosparse.kernels.rotary_store import rotary_store
from prosparse.kernels.weight import Weight

from ..config import ModelConfig
from .cache import KVCache
from .rope import RopeTable

View = Callable[[Tensor, Tensor], None]
# Of a prompt at a time: what lies behind them is left out, which PyTorch would compute and mask. 512 tokens of 24
# heads take 9 ms so, and 12.5 at once.
QUERIES = 128


@dataclass(frozen=True, eq=False)
class Step:
    """What one step computes: `rows` new tokens for each of some sequences.

    Args:
        slots: cache slot of each sequence.
        starts: how many tokens each sequence already has.
        rows: new tokens of each sequence.
        cos, sin: angles of the new tokens, [len(slots) * rows, head_dim / 2].
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    rows: int
    cos: Tensor
    sin: Tensor
    _masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False)

    @classmethod
    def at(cls, slots: tuple[int, ...], starts: tuple[int, ...], rows: int, rope: RopeTable) -> Step:
        if rows == 1 and len(starts) == 1:
            chosen = slice(starts[0], starts[0] + 1)
            return cls(slots, starts, rows, rope.cos[chosen], rope.sin[chosen])
        position = (torch.tensor(starts)[:, None] + torch.arange(rows)).flatten().to(rope.cos.device)
        # not cos[position]: that wakes PyTorch's threads, which then spin in the way of ours for milliseconds
        return cls(slots, starts, rows, rope.cos.index_select(0, position), rope.sin.index_select(0, position))

    def mask(self, group: int, rows: int, start: int, length: int, window: int, like: Tensor) -> Tensor:
        """What is added to the scores, [group * rows, length], the rows of a head adjacent; made for the first layer.

        The others take the same, and it goes with the step: with long contexts it is large.
        """
        key = group, rows, start, length, window
        if key not in self._masks:
            hidden = ~visible(rows, start, length, window, like.device)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(hidden, -torch.inf).repeat(group, 1)
        return self._masks[key]


class Attention:
    """residual -> residual + scale * o(attention(norm(residual))), or with `post_norm` norm(residual + scale * ...)

    Args:
        config: sizes and constants.
        layer: index of the layer in the cache.
        norm: weight of the norm, [hidden] float32.
        qkv: projections of query, key and value heads, in this order, [(heads + 2 kv_heads) * head_dim, hidden].
        qkv_bias: [(heads + 2 kv_heads) * head_dim] float32, or None.
        o: output projection, [hidden, heads * head_dim].
        norm_bias, o_bias: [hidden] float32, or None; a norm without one is RMSNorm.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        norm: Tensor,
        qkv: Weight,
        qkv_bias: Tensor | None,
        o: Weight,
        norm_bias: Tensor | None = None,
        o_bias: Tensor | None = None,
    ) -> None:
        self.layer, self.norm, self.qkv, self.qkv_bias, self.o = layer, norm, qkv, qkv_bias, o
        self.norm_bias, self.o_bias, self.post_norm = norm_bias, o_bias, config.block == "post_norm"
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.norm_eps, self.scale, self.window = config.norm_eps, config.residual_scale, config.sliding_window

    def with_ffn(self, ffn: Glu) -> Layer:
        """This block and the FFN after it, for the op that computes whole layers."""
        return Layer(self.norm, self.qkv, self.qkv_bias, self.o, ffn)

    def __call__(
        self, residual: Tensor, step: Step, cache: KVCache, onto: Tensor | None = None, view: View | None = None
    ) -> Tensor:
        """residual is [tokens, hidden] float32, the tokens of one sequence adjacent; so is the result.

        `onto` is what the output is added to in a parallel block, where it is not the residual. `view` is called with
        what qkv and o are given, [tokens, hidden] and [tokens, heads * head_dim] float32.
        """
        dtype = working_dtype(self.qkv, residual.shape[0])
        given = residual.to(dtype) if self.post_norm else self._normed(residual, dtype)
        x = linear(given, self.qkv)
        if self.qkv_bias is not None:
            x = x + self.qkv_bias
        attended = []
        for i, (slot, start) in enumerate(zip(step.slots, step.starts, strict=True)):
            own = slice(i * step.rows, (i + 1) * step.rows)
            keys, values = cache.up_to(self.layer, slot, start + step.rows)
            q = rotary_store(x[own], step.cos[own], step.sin[own], keys, values, start)
            attended.append(self._attend(q, keys, values, start, step))
        joined = attended[0] if len(attended) == 1 else torch.cat(attended)
        if view is not None:
            view(given.float(), joined.float())
        out = linear(joined, self.o)
        if self.o_bias is not None:
            out = out + self.o_bias
        out = add_scaled(residual if onto is None else onto, out, self.scale)
        return self._normed(out) if self.post_norm else out

    def _normed(self, residual: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return normalize(residual, self.norm, self.norm_bias, self.norm_eps, dtype)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, start: int, step: Step) -> Tensor:
        """One sequence: q [rows, heads, head_dim] over keys and values [kv_heads, length, head_dim]."""
        rows, group = q.shape[0], self.heads // self.kv_heads
        if rows <= MAX_ROWS:
            return attend(q, keys, values, start, self.window)
        q, parts = q.to(keys.dtype), []
        for begin in range(0, rows, QUERIES):
            some = q[begin : begin + QUERIES]
            end = start + begin + len(some)
            first = max(0, start + begin + 1 - self.window) if self.window else 0  # older keys are out of every window
            part = keys[None, :, first:end], values[None, :, first:end]
            # Query heads that share a key head become rows of one attention, so keys are never repeated.
            grouped = some.view(len(some), self.kv_heads, group, self.head_dim).permute(1, 2, 0, 3)
            grouped = grouped.reshape(1, self.kv_heads, group * len(some), self.head_dim)
            mask = step.mask(group, len(some), start + begin - first, end - first, self.window or 0, q)
            out = scaled_dot_product_attention(grouped, *part, attn_mask=mask)
            out = out.view(self.kv_heads, group, len(some), self.head_dim).permute(2, 0, 1, 3)
            parts.append(out.reshape(len(some), self.heads * self.head_dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
