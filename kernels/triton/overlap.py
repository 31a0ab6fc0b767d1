"""A launch that begins while the one before it ends, on GPUs that can ("programmatic dependent launch", 9.0 and later).

A program of such a kernel comes to a multiprocessor as soon as there is room, asks the L2 cache for its first weights,
which no launch writes, and waits for the whole launch before it, and for what that wrote to be seen. Only then does it
touch anything else, and lets the next launch come. So never more than one launch runs ahead, and whatever lies two
launches back is over: memory that it used may be used again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu import Gpu

LINE_UNITS = tl.constexpr(8)  # units of 16 bytes in a line of the L2 cache


def can_overlap(gpu: Gpu) -> bool:
    return gpu.capability >= 90


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Before anything is read that a launch writes, or written, in every kernel that may overlap."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def ask_l2(line):
    """Have lines brought to the L2 cache; the program goes on at once."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [line.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def ask_for_rows(
    codes_ptr, distance, start, step, rows,
    OVERLAP: tl.constexpr, TILES: tl.constexpr, BLOCK_N: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr,
    UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """The first TILES tiles of whole rows of a loop that goes from `start` by `step`, without their scales.

    What lies behind the last row, or the end of one, asks for the last again.
    """
    if OVERLAP:
        ELEMENTS: tl.constexpr = HIDDEN if FORMAT == "float" else 2 * SCALES * V // 16
        LINES: tl.constexpr = (UNITS + LINE_UNITS - 1) // LINE_UNITS
        element = tl.minimum(tl.arange(0, LINES) * LINE_UNITS * V, ELEMENTS - 1)[:, None]
        for tile in tl.static_range(TILES):
            row = tl.minimum(start + tile * step + tl.arange(0, BLOCK_N), rows - 1).to(tl.int64) * distance
            ask_l2(codes_ptr + row[None, :] * STEP + element)
