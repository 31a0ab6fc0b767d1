"""Down rows of 1 to 4 tokens: y += h * down_row, over a list, over segments of one, or over every neuron.

A program owns WIDTH columns and a balanced run of the slots; its partial sum goes to a workspace, and the last of the
programs of the same columns to finish adds the partials in order. So y depends on the number of slots and of splits,
never on scheduling. That tail is short because a partial is narrow. The launch before this one zeroes the tickets.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import AT_ONCE, DOWN, PIECES, TILE_DOWN, by_rows, down_splits, pieces
from .gpu import gpu_of
from .layout import Matrices, Residual, matrices
from .overlap import wait_for_previous
from .rows import INT8_UNITS, decode, flipped, join_four, magic_of, planes_of, shrunk
from .segments import Segments, load_counts, position
from .sums import EVERY, LIST, SEGMENTED, add_partials, is_last
from .tile_down import tile_down_kernel


@triton.jit
def down_kernel(
    h_ptr,
    index_ptr,
    count_ptr,
    down_ptr,
    scales_ptr,
    distance,
    partial_ptr,
    ticket_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    alpha,
    capacity,
    segments,
    own,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TOKENS: tl.constexpr,
    SOURCE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
    HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr,
    UNITS: tl.constexpr,
    V: tl.constexpr,
    STEP: tl.constexpr,
    SCALES: tl.constexpr,
):
    PLANES: tl.constexpr = planes_of(FORMAT)
    PIECES: tl.constexpr = WIDTH // (PLANES * V)  # units of these columns
    split, splits = tl.program_id(1), tl.num_programs(1)
    wait_for_previous(OVERLAP)
    if SOURCE == SEGMENTED:
        counts, ends, count = load_counts(count_ptr, segments, SEGMENTS)
    elif SOURCE == LIST:
        count = tl.minimum(tl.load(count_ptr), capacity)
    else:
        count = capacity
    unit = tl.program_id(0) * PIECES + tl.arange(0, PIECES)[:, None, None]
    element = unit * V + tl.arange(0, V)[None, None, :]
    if FORMAT == "float":
        inside = element < HIDDEN
    else:
        inside = unit < 2 * SCALES // 16

    ys = ()
    for _ in tl.static_range(TOKENS * PLANES):
        ys = ys + (tl.zeros([PIECES, BLOCK_N, V], dtype=tl.float32),)
    end = (split + 1) * count // splits
    for start in tl.range(split * count // splits, end, BLOCK_N, num_stages=STAGES):
        slot = start + tl.arange(0, BLOCK_N)
        live = slot < end
        if SOURCE == SEGMENTED:
            slot = position(slot, counts, ends, own)
        neuron = slot
        if SOURCE != EVERY:
            neuron = tl.load(index_ptr + slot, mask=live, other=0)
        hs = ()
        wanted = live & (SOURCE == EVERY)
        for token in tl.static_range(TOKENS):
            h = tl.load(h_ptr + token * capacity + slot, mask=live, other=0.0)
            hs = hs + (h,)
            wanted = wanted | (h != 0.0)  # dReLU closes listed neurons: their down rows are not read
        row = neuron.to(tl.int64)[None, :, None] * distance
        codes = tl.load(
            down_ptr + row * STEP + element, mask=inside & wanted[None, :, None], other=0, eviction_policy="evict_first"
        )
        codes = flipped(codes, FORMAT)
        if FORMAT != "float":
            group = unit if FORMAT == "int4" else unit // INT8_UNITS
            scale = tl.load(scales_ptr + row * 8 + SCALES + group, mask=inside & wanted[None, :, None], other=0.0)
            scale = scale.to(tl.float32)
        new = ()
        for token in tl.static_range(TOKENS):
            h = hs[token][None, :, None]
            if FORMAT != "float":
                h = h * scale
            for plane in tl.static_range(PLANES):
                y = h * shrunk(plane, FORMAT) * decode(codes, magic_of(distance), plane, FORMAT)
                new = new + (ys[token * PLANES + plane] + y,)
        ys = new

    for token in tl.static_range(TOKENS):
        to = partial_ptr + (split * TOKENS + token) * HIDDEN
        totals = ()
        for plane in tl.static_range(PLANES):
            totals = totals + (tl.sum(ys[token * PLANES + plane], axis=1, keep_dims=True),)
        if FORMAT == "int8":
            column = unit * 4 * V + tl.arange(0, 4 * V)[None, None, :]
            tl.store(to + column, join_four(totals, PIECES, V), mask=column < HIDDEN)
        else:
            for plane in tl.static_range(PLANES):
                column = (unit * PLANES + plane) * V + tl.arange(0, V)[None, None, :]
                tl.store(to + column, totals[plane], mask=column < HIDDEN)
    if is_last(ticket_ptr + tl.program_id(0), splits):
        add_partials(
            partial_ptr, bias_ptr, residual_ptr, y_ptr, alpha, tl.program_id(0) * WIDTH, splits, TOKENS, BIAS, RESIDUAL,
            HIDDEN, WIDTH, AT_ONCE,
        )  # fmt: skip


def new_tickets(x: Tensor, codes: Tensor) -> Tensor:
    """Room for a ticket per block of columns; the launch before `down` zeroes it."""
    weights = matrices(x.shape[1], codes)
    return x.new_empty(triton.cdiv(x.shape[1], _width(weights, x.shape[0])), dtype=torch.int32)


def _width(weights: Matrices, tokens: int) -> int:
    """Columns of a program."""
    if by_rows(weights, tokens):
        return PIECES * weights.unit_columns
    return TILE_DOWN[weights.format][3] * weights.planes


def down(
    x: Tensor, codes: Tensor, h: Segments | tuple[Tensor, Tensor, Tensor] | Tensor, tickets: Tensor,
    residual: Residual | None = None, bias: Tensor | None = None, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """Launch it.

    Args:
        x: input of the FFN, [tokens, hidden]: gives the result its shape and dtype; its values are not read.
        codes: down, in any format.
        h: products in segments, as a list (index, count, h), or of every neuron, [tokens, neurons].
        tickets: from `new_tickets`, zeroed by an earlier launch.
        residual: what to add to.
        bias: [hidden] fp32, added to every token's sum.
        overlap: see `overlap`.
    """
    tokens, hidden = x.shape
    weights = matrices(hidden, codes)
    small = by_rows(weights, tokens)
    weights = weights.words if small else weights
    blocks = tickets.numel()
    splits = down_splits(gpu_of(x.device), blocks)
    source, segments, own = LIST, 1, 1
    if isinstance(h, Segments):
        source, index, count, products = SEGMENTED, h.index, h.count, h.value
        segments, own = count.numel(), h.own
    elif isinstance(h, tuple):
        index, count, products = h
    else:
        source, index, count, products = EVERY, tickets, tickets, h
    partial = x.new_empty(splits, tokens, hidden, dtype=torch.float32)
    y = torch.empty_like(x)
    behind, alpha = residual or (y, 1.0)
    shared = {
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "SOURCE": source.value,
        "SEGMENTS": triton.next_power_of_2(segments),
        "WIDTH": _width(weights, tokens),
        "AT_ONCE": AT_ONCE,
        **weights.row,
    }
    pointers = (
        products,
        index,
        count,
        *weights.pointers[0],
        partial,
        tickets,
        y if bias is None else bias,
        behind,
        y,
        alpha,
    )
    if small:
        block_n, warps, stages = DOWN[weights.format]
        down_kernel[(blocks, splits)](
            *pointers, products.shape[1], segments, own, OVERLAP=overlap, TOKENS=tokens, BLOCK_N=block_n,
            STAGES=stages, num_warps=warps, launch_pdl=overlap, **shared,
        )  # fmt: skip
    else:
        block_n, warps, stages, _ = TILE_DOWN[weights.format]
        tile_down_kernel[(blocks, splits)](
            *pointers, tokens, products.shape[1], segments, own, BLOCK_N=block_n, STAGES=stages, num_warps=warps,
            TERMS=pieces(torch.float32, codes.dtype), **shared,
        )  # fmt: skip
    return y
