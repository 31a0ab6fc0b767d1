"""Causal attention of a few new tokens over a cache, with query heads that share key heads.

    scores[r, h, p] = q[r, h] . keys[h / group, p] / sqrt(head_dim)          p <= start + r, within the window
    out[r, h] = sum over p of softmax(scores[r, h])[p] * values[h / group, p]

The reference of a decode step's attention (Ainslie et al., "GQA", 2023; the blockwise softmax of the C++ kernel is
that of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). It reads the cache once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import FLOAT_DTYPES, MAX_ROWS
from .library import register


def attend(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None = None) -> Tensor:
    """Attention of one sequence's new tokens over everything it has, themselves included.

    Args:
        q: rotated queries, [rows, heads, head_dim] float32, contiguous, 1 to 16 rows.
        keys, values: [kv_heads, start + rows, head_dim] fp32 | fp16 | bf16, each head_dim contiguous; the new tokens'
            are already there.
        start: position of the first new token.
        window: how many latest positions a token sees, itself included; None for all.

    Returns:
        [rows, heads * head_dim] float32, accumulated in fp32 over the cache as stored.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.
    """
    rows, heads, head_dim = q.shape
    kv_heads, length, _ = keys.shape
    if keys.shape != values.shape or keys.shape[2] != head_dim or heads % kv_heads or length != start + rows:
        raise ValueError(
            f"attend: q {tuple(q.shape)} at start {start} does not fit keys {tuple(keys.shape)} and values "
            f"{tuple(values.shape)}; both must be [kv_heads, start + rows, head_dim] with heads a multiple of kv_heads"
        )
    if q.dtype != torch.float32 or keys.dtype not in FLOAT_DTYPES or keys.dtype != values.dtype:
        raise ValueError(
            f"attend: q must be float32 and keys and values of one float dtype, got {q.dtype}, {keys.dtype} and "
            f"{values.dtype}"
        )
    if not 1 <= rows <= MAX_ROWS or not q.is_contiguous():
        raise ValueError(f"attend: q must be contiguous with 1 to {MAX_ROWS} rows, got {rows}, strides {q.stride()}")
    if window is not None and window < 1:
        raise ValueError(f"attend: window must be at least 1 or None, got {window}")
    return torch.ops.prosparse.attend(q, keys, values, start, window or 0)


def attend_reference(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    rows, heads, head_dim = q.shape
    kv_heads, length, _ = keys.shape
    grouped = q.view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)  # [kv_heads, group, rows, ...]
    scores = grouped @ keys.float().transpose(1, 2)[:, None] / math.sqrt(head_dim)
    weights = scores.masked_fill(~visible(rows, start, length, window, q.device), -math.inf).softmax(-1)
    return (weights @ values.float()[:, None]).permute(2, 0, 1, 3).reshape(rows, heads * head_dim)


def visible(rows: int, start: int, length: int, window: int, device: torch.device) -> Tensor:
    """Which keys each new token sees, [rows, length] bool; window 0 is all."""
    row = torch.arange(start, start + rows, device=device)[:, None]
    key = torch.arange(length, device=device)
    return (key <= row) & (key > row - window) if window else key <= row


def _fake(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])


register("attend(Tensor q, Tensor keys, Tensor values, int start, int window) -> Tensor", attend_reference, _fake)
