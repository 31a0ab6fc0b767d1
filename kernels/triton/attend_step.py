"""Attention of sequences with one new token each, in one launch: rotate, write the cache, attend, join.

As `attend`, but where each sequence lies in the cache and how long it is are read on the device, so that a graph
replays for every position. A program rotates its own queries; the one whose run ends with the new token attends to its
key and value from registers, and writes them for later steps: no program needs what another one writes. The last
program of a key head to finish joins its splits; nobody waits. `embed` zeroes the tickets.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from .attend import QUERIES, join_head, run_of, walk
from .configs import ATTEND, attend_splits, attend_stages, pieces
from .gpu import gpu_of
from .overlap import wait_for_previous
from .sums import is_last


@triton.jit
def load_head(x_ptr, bias_ptr, at, d, live, BIAS: tl.constexpr):
    """Channels d of heads that start at `at`, with their bias."""
    x = tl.load(x_ptr + at + d, mask=live, other=0.0)
    if BIAS:
        x += tl.load(bias_ptr + at + d, mask=live, other=0.0)
    return x


@triton.jit
def rotated(x_ptr, bias_ptr, at, d, live, cos, sin, HALF: tl.constexpr, BIAS: tl.constexpr):
    """Heads turned by their angles: [a, b] -> [a cos - b sin, b cos + a sin]."""
    partner = tl.where(d < HALF, d + HALF, d - HALF)
    x = load_head(x_ptr, bias_ptr, at, d, live, BIAS)
    other = load_head(x_ptr, bias_ptr, at, partner, live, BIAS)
    return x * cos + tl.where(d < HALF, -other, other) * sin


@triton.jit
def attend_step_kernel(
    qkv_ptr, bias_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, slot_ptr, start_ptr, part_ptr, largest_ptr, total_ptr,
    ticket_ptr, out_ptr, scale, blocks, keys_slot, keys_head, keys_position, values_slot, values_head, values_position,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BIAS: tl.constexpr, OVERLAP: tl.constexpr, WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, QUERIES: tl.constexpr, BLOCK_P: tl.constexpr, SPLITS: tl.constexpr,
    TERMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One key head, up to QUERIES of the queries that share it, and a run of one sequence's positions."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    HALF: tl.constexpr = HEAD_DIM // 2
    WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    kv_head, sequence, block = tl.program_id(0), tl.program_id(1) // blocks, tl.program_id(1) % blocks
    split, splits = tl.program_id(2), tl.num_programs(2)
    wait_for_previous(OVERLAP)
    start = tl.load(start_ptr + sequence)
    slot = tl.load(slot_ptr + sequence).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM
    angle = start * HALF + d % HALF
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)

    own = qkv_ptr + sequence * WIDTH
    query = block * QUERIES + tl.arange(0, QUERIES)  # of those that share the key head
    live = query < GROUP
    at = (kv_head * GROUP + query) * HEAD_DIM
    mask = live[:, None] & inside[None, :]
    q = rotated(own, bias_ptr, at[:, None], d[None, :], mask, cos[None, :], sin[None, :], HALF, BIAS)
    at = (HEADS + kv_head) * HEAD_DIM
    new_key = rotated(own, bias_ptr, at, d, inside, cos, sin, HALF, BIAS).to(keys_ptr.dtype.element_ty)
    new_value = load_head(own, bias_ptr, at + KV_HEADS * HEAD_DIM, d, inside, BIAS).to(values_ptr.dtype.element_ty)

    keys_ptr += slot * keys_slot + kv_head.to(tl.int64) * keys_head
    values_ptr += slot * values_slot + kv_head.to(tl.int64) * values_head
    first, last = run_of(start, 1, split, splits, WINDOW, BLOCK_P)
    has_new = (first <= start) & (start < last)
    score = tl.sum(q * new_key.to(tl.float32)[None, :], axis=1) * scale
    acc, largest, total = walk(
        q, tl.zeros([QUERIES], tl.int32), start, first, tl.minimum(last, start), scale, keys_ptr, values_ptr,
        keys_position, values_position,
        tl.where(has_new & live[:, None], new_value.to(tl.float32)[None, :], 0.0),
        tl.where(has_new & live, score, -float("inf")), tl.where(has_new & live, 1.0, 0.0), WINDOW, HEAD_DIM, BLOCK_D,
        QUERIES, BLOCK_P, TERMS, STAGES,
    )  # fmt: skip
    if has_new & (block == 0):
        tl.store(keys_ptr + start.to(tl.int64) * keys_position + d, new_key, mask=inside)
        tl.store(values_ptr + start.to(tl.int64) * values_position + d, new_value, mask=inside)

    head = sequence * HEADS + kv_head * GROUP + query
    every = tl.num_programs(1) // blocks * HEADS
    to = split * every + head
    tl.store(part_ptr + to[:, None] * HEAD_DIM + d[None, :], acc, mask=mask)
    tl.store(largest_ptr + to, largest, mask=live)
    tl.store(total_ptr + to, total, mask=live)
    if is_last(ticket_ptr + tl.program_id(1) * KV_HEADS + kv_head, splits):
        for i in range(0, tl.minimum(QUERIES, GROUP - block * QUERIES)):
            own_head = sequence * HEADS + kv_head * GROUP + block * QUERIES + i
            join_head(part_ptr, largest_ptr, total_ptr, out_ptr, own_head, every, splits, HEAD_DIM, BLOCK_D, SPLITS)


def tickets_of(heads: int, kv_heads: int, sequences: int) -> int:
    """How many tickets a launch takes."""
    return sequences * kv_heads * triton.cdiv(heads // kv_heads, QUERIES)


def launch(
    qkv: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor,
    starts: Tensor, window: int, tickets: Tensor, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """One new token of each sequence.

    Args:
        qkv: query, key and value heads side by side, [sequences, (heads + 2 * kv_heads) * head_dim] float32.
        bias: added to them, [(heads + 2 * kv_heads) * head_dim] float32.
        cos, sin: angles of every position, [context, head_dim / 2] float32.
        keys, values: a layer of the cache, [slots, kv_heads, context, head_dim]; the new token is written there.
        slots, starts: place in the cache, and length so far, of each sequence, [sequences] int32.
        window: how many latest positions a token sees; 0 for all.
        tickets: [tickets_of(...)] int32, zeroed since the last launch that took them.
        overlap: see `overlap`.

    Returns:
        [sequences, heads * head_dim] float32.
    """
    sequences, (_, kv_heads, room, head_dim) = qkv.shape[0], keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    blocks = triton.cdiv(heads // kv_heads, QUERIES)
    block_p, warps, stages = ATTEND
    splits = attend_splits(gpu_of(qkv.device), kv_heads * blocks * sequences, room)
    part = qkv.new_empty(splits, sequences, heads, head_dim)
    largest, total = qkv.new_empty(splits, sequences, heads), qkv.new_empty(splits, sequences, heads)
    out = qkv.new_empty(sequences, heads * head_dim)
    attend_step_kernel[(kv_heads, sequences * blocks, splits)](
        qkv, qkv if bias is None else bias, cos, sin, keys, values, slots, starts, part, largest, total, tickets, out,
        1 / math.sqrt(head_dim), blocks, keys.stride(0), keys.stride(1), keys.stride(2), values.stride(0),
        values.stride(1), values.stride(2), HEADS=heads, KV_HEADS=kv_heads, BIAS=bias is not None, OVERLAP=overlap,
        WINDOW=window, HEAD_DIM=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)), QUERIES=QUERIES,
        BLOCK_P=block_p, SPLITS=triton.next_power_of_2(splits), TERMS=pieces(qkv.dtype, keys.dtype),
        STAGES=attend_stages(stages, head_dim), num_warps=warps, launch_pdl=overlap,
    )  # fmt: skip
    return out
