"""Layers of random weights and a cache for the op that computes whole layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from prosparse.kernels.activation import Activation
from prosparse.kernels.decode_layers import Glu, Layer
from prosparse.kernels.weight import in_format

EPS = 1e-5
# hidden, heads, kv_heads, head_dim, neurons: plain, odd everywhere (132 is 128 and a tail), no shared key heads
SIZES = [(64, 4, 2, 16, 96), (132, 6, 3, 10, 77), (33, 2, 2, 18, 50)]


def make(sizes, fmt, dense, bias=False, layers=2, activation=None, context=12, slots=3, guess=None):
    """Layers of random weights, and a cache whose positions hold random keys and values."""
    hidden, heads, kv_heads, head_dim, neurons = sizes
    rng = torch.Generator().manual_seed(0)

    def weight(rows, columns):
        return in_format(torch.randn(rows, columns, generator=rng) / columns**0.5, fmt)

    made = []
    for i in range(layers):
        width = (heads + 2 * kv_heads) * head_dim
        ffn = Glu(
            torch.rand(hidden, generator=rng),
            weight(neurons, hidden),
            weight(neurons, hidden),
            weight(neurons, hidden),
            activation or Activation("relu"),
            dense=dense[i],
        )
        if guess is not None and not dense[i]:
            ffn = replace(ffn, guess=guess(ffn.gate, rng))
        made.append(
            Layer(
                torch.rand(hidden, generator=rng),
                weight(width, hidden),
                torch.randn(width, generator=rng) if bias else None,
                weight(hidden, heads * head_dim),
                ffn,
            )
        )
    keys = torch.randn(2, layers, slots, kv_heads, context, head_dim, generator=rng).bfloat16()
    return made, keys[0].contiguous(), keys[1].contiguous()
