"""`kernels.attend`: the context is split over programs, whose softmaxes a second launch joins.

A program takes a key head, QUERIES of the queries that share it, and a run of positions, which it walks with a running
maximum (Milakov and Gimelshein, 2018; split over the context as in Dao et al., "Flash-Decoding", 2023). The number of
splits comes from the room that keys have, never from their number, so that a graph can replay with a longer context
(`attend_step`, which also rotates, stores and joins).
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from .configs import ATTEND, attend_splits, attend_stages, pieces
from .gpu import gpu_of
from .tiles import dot

QUERIES = 16  # of a program: the smallest tile of the tensor cores


@triton.jit
def walk(
    q, row, start, first, last, scale, keys_ptr, values_ptr, keys_position, values_position, acc, largest, total,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, QUERIES: tl.constexpr, BLOCK_P: tl.constexpr,
    TERMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Queries [QUERIES, BLOCK_D] of rows [QUERIES] over positions [first, last) of a key head.

    acc, largest, total: unnormalised sums [QUERIES, BLOCK_D], largest scores and total weights [QUERIES] of what was
    seen before; returned with what is seen here.
    """
    d = tl.arange(0, BLOCK_D)
    for begin in tl.range(first, last, BLOCK_P, num_stages=STAGES):
        position = begin + tl.arange(0, BLOCK_P)
        mask = (position < last)[:, None] & (d < HEAD_DIM)[None, :]
        far = position.to(tl.int64)[:, None]
        keys = tl.load(keys_ptr + far * keys_position + d[None, :], mask=mask, other=0.0).to(tl.float32)
        values = tl.load(values_ptr + far * values_position + d[None, :], mask=mask, other=0.0).to(tl.float32)
        scores = dot(q, tl.trans(keys), tl.zeros([QUERIES, BLOCK_P], tl.float32), 0, TERMS) * scale
        seen = (position < last)[None, :] & (position[None, :] <= start + row[:, None])
        if WINDOW > 0:
            seen = seen & (position[None, :] > start + row[:, None] - WINDOW)
        scores = tl.where(seen, scores, -float("inf"))
        new = tl.maximum(largest, tl.max(scores, axis=1))
        shift = tl.where(new == -float("inf"), 0.0, new)  # nothing seen so far: not inf - inf
        weights = tl.exp(scores - shift[:, None])
        fade = tl.exp(largest - shift)
        total = total * fade + tl.sum(weights, axis=1)
        acc = dot(weights, values, acc * fade[:, None], 0, TERMS)
        largest = new
    return acc, largest, total


@triton.jit
def run_of(start, rows, split, splits, WINDOW: tl.constexpr, BLOCK_P: tl.constexpr):
    """Positions [first, last) of a split: whole tiles of what the first of `rows` new tokens sees and of the new."""
    length = start + rows
    low = 0
    if WINDOW > 0:
        low = tl.maximum(0, start + 1 - WINDOW)
    run = tl.cdiv(tl.cdiv(length - low, splits), BLOCK_P) * BLOCK_P
    first = low + split * run
    return first, tl.minimum(first + run, length)


@triton.jit
def join_head(
    part_ptr, largest_ptr, total_ptr, out_ptr, own, every, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The softmaxes of all splits of one head of one row as one; `own` is its number among `every` such."""
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, BLOCK_D)
    live = split < splits
    # .cg: other programs wrote it, perhaps of the same launch, so the L1 may be stale
    largest = tl.load(largest_ptr + split * every + own, mask=live, other=-float("inf"), cache_modifier=".cg")
    total = tl.load(total_ptr + split * every + own, mask=live, other=0.0, cache_modifier=".cg")
    fade = tl.exp(largest - tl.max(largest, axis=0))
    fade = tl.where(total == 0.0, 0.0, fade)  # a split that saw nothing
    at = (split * every + own)[:, None] * HEAD_DIM + d[None, :]
    mask = live[:, None] & (d < HEAD_DIM)[None, :]
    part = tl.load(part_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
    out = tl.sum(part * fade[:, None], axis=0) / tl.sum(total * fade, axis=0)
    tl.store(out_ptr + own * HEAD_DIM + d, out, mask=d < HEAD_DIM)


@triton.jit(do_not_specialize=["start"])
def attend_kernel(
    q_ptr, keys_ptr, values_ptr, part_ptr, largest_ptr, total_ptr, start, rows, scale, keys_head, keys_position,
    values_head, values_position,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK_P: tl.constexpr, TERMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Unnormalised sums [splits, rows, heads, head_dim], their largest score and total weight [splits, rows, heads]."""
    kv_head, block, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query = block * QUERIES + tl.arange(0, QUERIES)
    row = query // GROUP
    live = row < rows
    head = kv_head * GROUP + query % GROUP
    d = tl.arange(0, BLOCK_D)
    at = (row * HEADS + head) * HEAD_DIM
    mask = live[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + at[:, None] + d[None, :], mask=mask, other=0.0)
    first, last = run_of(start, rows, split, tl.num_programs(2), WINDOW, BLOCK_P)
    acc, largest, total = walk(
        q, row, start, first, last, scale, keys_ptr + kv_head.to(tl.int64) * keys_head,
        values_ptr + kv_head.to(tl.int64) * values_head, keys_position, values_position,
        tl.zeros([QUERIES, BLOCK_D], tl.float32), tl.full([QUERIES], -float("inf"), tl.float32),
        tl.zeros([QUERIES], tl.float32), WINDOW, HEAD_DIM, BLOCK_D, QUERIES, BLOCK_P, TERMS, STAGES,
    )  # fmt: skip
    own = (split * rows + row) * HEADS + head
    tl.store(part_ptr + own[:, None] * HEAD_DIM + d[None, :], acc, mask=mask)
    tl.store(largest_ptr + own, largest, mask=live)
    tl.store(total_ptr + own, total, mask=live)


@triton.jit
def join_attend_kernel(
    part_ptr, largest_ptr, total_ptr, out_ptr, splits, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """One head of one row."""
    join_head(
        part_ptr, largest_ptr, total_ptr, out_ptr, tl.program_id(0), tl.num_programs(0), splits, HEAD_DIM, BLOCK_D,
        SPLITS,
    )  # fmt: skip


def launch(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int) -> Tensor:
    rows, heads, head_dim = q.shape
    kv_heads, room, _ = keys.shape
    group = heads // kv_heads
    blocks = triton.cdiv(rows * group, QUERIES)
    block_p, warps, stages = ATTEND
    splits = attend_splits(gpu_of(q.device), kv_heads * blocks, room)
    part = q.new_empty(splits, rows, heads, head_dim)
    largest, total = q.new_empty(splits, rows, heads), q.new_empty(splits, rows, heads)
    block_d = max(16, triton.next_power_of_2(head_dim))
    attend_kernel[(kv_heads, blocks, splits)](
        q, keys, values, part, largest, total, start, rows, 1 / math.sqrt(head_dim), keys.stride(0), keys.stride(1),
        values.stride(0), values.stride(1), HEADS=heads, GROUP=group, WINDOW=window, HEAD_DIM=head_dim, BLOCK_D=block_d,
        QUERIES=QUERIES, BLOCK_P=block_p, TERMS=pieces(q.dtype, keys.dtype),
        STAGES=attend_stages(stages, head_dim), num_warps=warps,
    )  # fmt: skip
    out = q.new_empty(rows, heads * head_dim)
    join_attend_kernel[(rows * heads,)](
        part, largest, total, out, splits, HEAD_DIM=head_dim, BLOCK_D=block_d, SPLITS=triton.next_power_of_2(splits),
        num_warps=1,
    )  # fmt: skip
    return out
