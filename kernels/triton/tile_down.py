"""The down rows of 5 to 16 tokens, on the tensor cores; otherwise as `down`."""

from __future__ import annotations

import triton
import triton.language as tl

from .segments import load_counts, position
from .sums import EVERY, LIST, SEGMENTED, add_partials, is_last
from .tiles import COLUMNS, INT8_GROUP, dot, unpack


@triton.jit
def tile_down_kernel(
    h_ptr, index_ptr, count_ptr, down_ptr, scales_ptr, distance, partial_ptr, ticket_ptr, bias_ptr, residual_ptr,
    y_ptr, alpha, tokens, capacity, segments, own,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SOURCE: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr, AT_ONCE: tl.constexpr, TERMS: tl.constexpr, STAGES: tl.constexpr, HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    PLANES: tl.constexpr = 8 if FORMAT == "int4" else 1
    ELEMENTS: tl.constexpr = HIDDEN if FORMAT == "float" else 2 * SCALES // (16 // V)
    BLOCK_E: tl.constexpr = WIDTH // PLANES
    split, splits = tl.program_id(1), tl.num_programs(1)
    if SOURCE == SEGMENTED:
        counts, ends, count = load_counts(count_ptr, segments, SEGMENTS)
    elif SOURCE == LIST:
        count = tl.minimum(tl.load(count_ptr), capacity)
    else:
        count = capacity
    token = tl.arange(0, COLUMNS)
    element = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    ys = ()
    for _ in tl.static_range(PLANES):
        ys = ys + (tl.zeros([COLUMNS, BLOCK_E], dtype=tl.float32),)
    end = (split + 1) * count // splits
    for start in tl.range(split * count // splits, end, BLOCK_N, num_stages=STAGES):
        slot = start + tl.arange(0, BLOCK_N)
        live = slot < end
        if SOURCE == SEGMENTED:
            slot = position(slot, counts, ends, own)
        neuron = slot
        if SOURCE != EVERY:
            neuron = tl.load(index_ptr + slot, mask=live, other=0)
        at = token[:, None] * capacity + slot[None, :]
        h = tl.load(h_ptr + at, mask=(token < tokens)[:, None] & live[None, :], other=0.0)
        wanted = live
        if SOURCE != EVERY:  # dReLU closes listed neurons: their down rows are not read
            wanted = live & (tl.max((h != 0.0).to(tl.int32), axis=0) > 0)
        row = neuron.to(tl.int64) * distance
        mask = wanted[:, None] & (element < ELEMENTS)[None, :]
        codes = tl.load(
            down_ptr + row[:, None] * STEP + element[None, :], mask=mask, other=0, eviction_policy="evict_first"
        )
        if FORMAT == "int8":  # these columns lie in one group
            group = tl.program_id(0) * WIDTH // INT8_GROUP
            scale = tl.load(scales_ptr + row * 8 + SCALES + group, mask=wanted, other=0.0)
            h = h * scale.to(tl.float32)[None, :]
        if FORMAT == "int4":
            group = row[:, None] * 8 + SCALES + (element // V)[None, :]
            scale = tl.load(scales_ptr + group, mask=mask, other=0.0).to(tl.float32)
        new = ()
        for plane in tl.static_range(PLANES):
            weight = unpack(codes, plane, FORMAT)
            if FORMAT == "int4":
                weight = weight * scale
            new = new + (dot(h, weight, ys[plane], 0, TERMS),)
        ys = new

    to = partial_ptr + (split * tokens + token)[:, None] * HIDDEN
    for plane in tl.static_range(PLANES):
        column = (element // V * PLANES + plane) * V + element % V
        mask = (token < tokens)[:, None] & (column < HIDDEN)[None, :]
        tl.store(to + column[None, :], ys[plane], mask=mask)
    if is_last(ticket_ptr + tl.program_id(0), splits):
        add_partials(
            partial_ptr, bias_ptr, residual_ptr, y_ptr, alpha, tl.program_id(0) * WIDTH, splits, tokens, BIAS, RESIDUAL,
            HIDDEN, WIDTH, AT_ONCE,
        )  # fmt: skip
