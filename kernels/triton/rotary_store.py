"""`kernels.rotary_store`: one program per token and head."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_halves(to, a, b, HALF: tl.constexpr, BLOCK: tl.constexpr):
    half = tl.arange(0, BLOCK)
    tl.store(to + half, a.to(to.dtype.element_ty), mask=half < HALF)
    tl.store(to + HALF + half, b.to(to.dtype.element_ty), mask=half < HALF)


@triton.jit(do_not_specialize=["start"])
def rotary_store_kernel(
    qkv_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, q_ptr, start, keys_head, keys_position, values_head,
    values_position,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    half = tl.arange(0, BLOCK)
    live = half < HALF
    a_ptr = qkv_ptr + (row * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF + half
    a = tl.load(a_ptr, mask=live, other=0.0).to(tl.float32)
    b = tl.load(a_ptr + HALF, mask=live, other=0.0).to(tl.float32)
    position = (start + row).to(tl.int64)
    if head < HEADS + KV_HEADS:
        cos = tl.load(cos_ptr + row * HALF + half, mask=live, other=0.0)
        sin = tl.load(sin_ptr + row * HALF + half, mask=live, other=0.0)
        turned = a * cos - b * sin
        b = b * cos + a * sin
        a = turned
    if head < HEADS:
        store_halves(q_ptr + (row * HEADS + head) * 2 * HALF, a, b, HALF, BLOCK)
    elif head < HEADS + KV_HEADS:
        at = (head - HEADS).to(tl.int64) * keys_head + position * keys_position
        store_halves(keys_ptr + at, a, b, HALF, BLOCK)
    else:
        at = (head - HEADS - KV_HEADS).to(tl.int64) * values_head + position * values_position
        store_halves(values_ptr + at, a, b, HALF, BLOCK)


def launch(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    rows, (kv_heads, _, head_dim) = qkv.shape[0], keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    q = qkv.new_empty(rows, heads, head_dim)
    rotary_store_kernel[(rows, heads + 2 * kv_heads)](
        qkv, cos, sin, keys, values, q, start, keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, BLOCK=triton.next_power_of_2(head_dim // 2),
        num_warps=1,
    )  # fmt: skip
    return q
