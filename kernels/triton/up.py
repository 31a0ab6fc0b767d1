"""Up rows of listed neurons for 1 to 4 tokens: h = value * (up_row . x)."""

from __future__ import annotations

import triton
import triton.language as tl

from ..tally import DOWN_ROWS, NONZERO, PREDICTED, UP_ROWS
from .activate import weigh
from .rows import dots, load_rows

UP_AT = tl.constexpr(UP_ROWS)
DOWN_AT = tl.constexpr(DOWN_ROWS)
NONZERO_AT = tl.constexpr(NONZERO)
PREDICTED_AT = tl.constexpr(PREDICTED)


@triton.jit
def add_to_tally(tally_ptr, up_rows, down_rows, nonzero):
    """What a program did; integer sums do not depend on their order."""
    tl.atomic_add(tally_ptr + UP_AT, up_rows.to(tl.int64), sem="relaxed")
    tl.atomic_add(tally_ptr + DOWN_AT, down_rows.to(tl.int64), sem="relaxed")
    tl.atomic_add(tally_ptr + NONZERO_AT, nonzero.to(tl.int64), sem="relaxed")


@triton.jit
def count_predicted(tally_ptr, rows):
    """Gate rows that a program read since a guess named them."""
    tl.atomic_add(tally_ptr + PREDICTED_AT, rows.to(tl.int64), sem="relaxed")


@triton.jit
def up_of_slots(
    xs,
    up_ptr,
    up_scales_ptr,
    up_distance,
    index_ptr,
    value_ptr,
    h_ptr,
    tally_ptr,
    first,
    end,
    capacity,
    TOKENS: tl.constexpr,
    ON_UP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr,
    UNITS: tl.constexpr,
    V: tl.constexpr,
    STEP: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Slots [first, end) of a list whose values and products are [TOKENS, capacity]."""
    down_rows = tl.zeros([BLOCK_N], dtype=tl.int32)
    nonzero = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        slot = start + tl.arange(0, BLOCK_N)
        live = slot < end
        neuron = tl.load(index_ptr + slot, mask=live, other=0)
        read = load_rows(up_ptr, up_scales_ptr, up_distance, neuron, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES)
        wanted = tl.zeros([BLOCK_N], dtype=tl.int1)
        for token in tl.static_range(TOKENS):
            value = tl.load(value_ptr + token * capacity + slot, mask=live, other=0.0)
            h = weigh(value, dots(read, xs[token], FORMAT), ON_UP)
            tl.store(h_ptr + token * capacity + slot, h, mask=live)
            wanted = wanted | (h != 0.0)
            nonzero += (h != 0.0).to(tl.int32)
        down_rows += wanted.to(tl.int32)
    add_to_tally(tally_ptr, end - first, tl.sum(down_rows, axis=0), tl.sum(nonzero, axis=0))
