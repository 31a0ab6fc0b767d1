"""Between the qkv projection and attention: rotate queries and keys, write keys and values into the cache.

[a, b] -> [a cos - b sin, b cos + a sin]        for the halves a, b of a head  (Su et al., "RoFormer", 2021)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import FLOAT_DTYPES, check_shape
from .library import register


def rotary_store(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """Queries of one sequence's new tokens; their keys and values go to its place in the cache.

    Args:
        qkv: query, key and value heads side by side, [rows, (heads + 2 * kv_heads) * head_dim] fp32 | fp16 | bf16,
            contiguous; turned in fp32.
        cos, sin: angles of the new tokens, [rows, head_dim / 2] float32, contiguous.
        keys, values: what the sequence has, [kv_heads, start + rows, head_dim] fp32 | fp16 | bf16; head_dim contiguous.
            Positions from `start` on are written, rounded to their dtype.
        start: position of the first new token.

    Returns:
        rotated queries, [rows, heads, head_dim], dtype of qkv.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.
    """
    check_shape(
        "rotary_store",
        qkv=(qkv, ("rows", "width")),
        cos=(cos, ("rows", "half")),
        sin=(sin, ("rows", "half")),
        keys=(keys, ("kv_heads", "length", "head_dim")),
        values=(values, ("kv_heads", "length", "head_dim")),
    )
    (rows, width), (kv_heads, length, head_dim) = qkv.shape, keys.shape
    heads = width // head_dim - 2 * kv_heads
    if start < 0 or length != start + rows or 2 * cos.shape[1] != head_dim or width % head_dim or heads < 1:
        raise ValueError(
            f"rotary_store: qkv {tuple(qkv.shape)} at start {start} with angles {tuple(cos.shape)} does not fit keys "
            f"{tuple(keys.shape)}; expected [rows, (heads + 2 * kv_heads) * head_dim] and [kv_heads, start + rows, ...]"
        )
    floats = qkv.dtype in FLOAT_DTYPES and keys.dtype == values.dtype in FLOAT_DTYPES
    if not (floats and cos.dtype == sin.dtype == torch.float32):
        raise ValueError(
            "rotary_store: qkv must be of a float dtype, cos and sin float32, the cache of one float dtype, got "
            f"{qkv.dtype}, {cos.dtype}, {sin.dtype}, {keys.dtype} and {values.dtype}"
        )
    return torch.ops.prosparse.rotary_store(qkv, cos, sin, keys, values, start)


def rotary_store_reference(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    kv_heads, _, head_dim = keys.shape
    x = qkv.view(qkv.shape[0], -1, head_dim).float()
    a, b = x[:, :-kv_heads].chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    keys[:, start:] = rotated[:, -kv_heads:].transpose(0, 1)
    values[:, start:] = x[:, -kv_heads:].transpose(0, 1)
    return rotated[:, :-kv_heads].to(qkv.dtype, copy=True)


def _fake(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    kv_heads, _, head_dim = keys.shape
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads, head_dim)


register(
    "rotary_store(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, int start) -> Tensor",
    rotary_store_reference,
    _fake,
)
