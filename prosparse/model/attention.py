"""Causal grouped-query attention over the cache (Ainslie et al., "GQA", 2023), as a block of the decoder.

Each sequence is computed by itself, so its result does not depend on which others share the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prosparse.kernels.attend import attend, visible
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.decode_layers import Glu, Layer
from prosparse.kernels.layer_norm import normalize
from prosparse.kernels.linear import linear
from prosparse.kernels.rotary_store import rotary_store
from prosparse.kernels.weight import Weight

from ..config import ModelConfig
from .cache import KVCache
from .rope import RopeTable

View = Callable[[Tensor, Tensor], None]


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

    @classmethod
    def at(cls, slots: tuple[int, ...], starts: tuple[int, ...], rows: int, rope: RopeTable) -> Step:
        if rows == 1 and len(starts) == 1:
            chosen = slice(starts[0], starts[0] + 1)
            return cls(slots, starts, rows, rope.cos[chosen], rope.sin[chosen])
        position = (torch.tensor(starts)[:, None] + torch.arange(rows)).flatten().to(rope.cos.device)
        return cls(slots, starts, rows, rope.cos[position], rope.sin[position])


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
        given = residual if self.post_norm else self._normed(residual)
        x = linear(given, self.qkv)
        if self.qkv_bias is not None:
            x = x + self.qkv_bias
        attended = []
        for i, (slot, start) in enumerate(zip(step.slots, step.starts, strict=True)):
            own = slice(i * step.rows, (i + 1) * step.rows)
            keys, values = cache.up_to(self.layer, slot, start + step.rows)
            q = rotary_store(x[own], step.cos[own], step.sin[own], keys, values, start)
            attended.append(self._attend(q, keys, values, start))
        joined = attended[0] if len(attended) == 1 else torch.cat(attended)
        if view is not None:
            view(given, joined)
        out = linear(joined, self.o)
        if self.o_bias is not None:
            out = out + self.o_bias
        out = torch.add(residual if onto is None else onto, out, alpha=self.scale)
        return self._normed(out) if self.post_norm else out

    def _normed(self, residual: Tensor) -> Tensor:
        return normalize(residual, self.norm, self.norm_bias, self.norm_eps)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """One sequence: q [rows, heads, head_dim] over keys and values [kv_heads, length, head_dim]."""
        rows, group = q.shape[0], self.heads // self.kv_heads
        if rows <= MAX_ROWS:
            return attend(q, keys, values, start, self.window)
        # Query heads that share a key head become rows of one attention, so keys are never repeated.
        grouped = q.view(rows, self.kv_heads, group, self.head_dim).permute(1, 2, 0, 3)
        grouped = grouped.reshape(1, self.kv_heads, group * rows, self.head_dim).to(keys.dtype)
        first = max(0, start + 1 - self.window) if self.window else 0  # older keys are out of every row's window
        keys, values = keys[:, first:], values[:, first:]
        mask = visible(rows, start - first, keys.shape[1], self.window or 0, keys.device).repeat(group, 1)
        out = scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=mask)
        out = out.view(self.kv_heads, group, rows, self.head_dim).permute(2, 0, 1, 3)
        return out.reshape(rows, self.heads * self.head_dim).to(q.dtype)
