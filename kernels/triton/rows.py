"""Dot products of whole rows with 1 to 4 tokens, on the ordinary cores.

A tile is [UNITS, BLOCK_N, V]: BLOCK_N rows, every 16-byte unit of them (see `layout`). x lies in registers for the
whole program in the same shape, so that a weight is decoded, multiplied and summed without leaving its thread, and a
row ends in one reduction. Units come first because Triton breaks ties of contiguity by the lower dimension: a warp then
reads 512 contiguous bytes of a row and x needs no change of layout.

Weight loops say num_stages: without it the assembler sinks loads next to their use (3 or 4 of 16 stay in flight), with
it they become asynchronous copies that run STAGES - 1 tiles ahead through shared memory and cost no registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..quant import GROUP

MAGIC = tl.constexpr(0x4B000000)  # 2**23 as fp32 bits: bits or-ed into it are a float after a subtraction
INT8_UNITS = tl.constexpr(GROUP["int8"] // 16)  # units of a group; a group of int4 is one unit


@triton.constexpr_function
def planes_of(fmt):
    """Weights in an element: codes in a word of 32 bits."""
    return {"int4": 8, "int8": 4}.get(fmt, 1)


@triton.constexpr_function
def shift_of(plane, fmt):
    """Bits that a code of this plane stands above the bottom of its half of the word."""
    return {"int4": 4 * plane, "int8": 8 * plane}.get(fmt, 0) % 16


@triton.constexpr_function
def shrunk(plane, fmt):
    """What makes up for it: 2**-shift, by which a factor of the weights is multiplied."""
    return 0.5 ** ({"int4": 4 * plane, "int8": 8 * plane}.get(fmt, 0) % 16)


@triton.jit
def split_four(x, UNITS: tl.constexpr):
    """[UNITS, 1, 4] to four of [UNITS, 1, 1]."""
    even, odd = tl.split(tl.reshape(x, [UNITS, 1, 1, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def join_four(parts, UNITS: tl.constexpr, V: tl.constexpr):
    """Four of [UNITS, 1, V] to [UNITS, 1, 4 * V]: element after element of each in turn."""
    even, odd = tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3])
    return tl.reshape(tl.join(even, odd), [UNITS, 1, 4 * V])


@triton.jit
def load_x(x_ptr, token, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr):
    """One token in fp32: a tuple of a [UNITS, 1, V] for every plane. Zero behind the end of the row."""
    unit = tl.arange(0, UNITS)[:, None, None]
    planes = ()
    if FORMAT == "int8":
        lanes = ()  # of four columns each, read together and parted in registers
        for lane in tl.static_range(V):
            column = (unit * V + lane) * 4 + tl.arange(0, 4)[None, None, :]
            x = tl.load(x_ptr + token * HIDDEN + column, mask=column < HIDDEN, other=0.0)
            lanes = lanes + (split_four(x.to(tl.float32), UNITS),)
        for plane in tl.static_range(4):
            parted = (lanes[0][plane], lanes[1][plane], lanes[2][plane], lanes[3][plane])  # type: ignore[misc]
            planes = planes + (join_four(parted, UNITS, 1),)
    else:
        for plane in tl.static_range(planes_of(FORMAT)):
            column = (unit * planes_of(FORMAT) + plane) * V + tl.arange(0, V)[None, None, :]
            x = tl.load(x_ptr + token * HIDDEN + column, mask=column < HIDDEN, other=0.0)
            planes = planes + (x.to(tl.float32),)
    return planes


@triton.jit
def load_tokens(
    x_ptr, norm_ptr, eps,
    NORM: tl.constexpr, TOKENS: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr,
    V: tl.constexpr,
):  # fmt: skip
    """All tokens, planes times 2**-shift; with NORM their RMSNorm, which every program computes for itself."""
    xs = ()
    if NORM:
        weight = load_x(norm_ptr, 0, HIDDEN, FORMAT, UNITS, V)
    for token in tl.static_range(TOKENS):
        x = load_x(x_ptr, token, HIDDEN, FORMAT, UNITS, V)
        if NORM:
            x = normed(x, weight, eps, HIDDEN, FORMAT)
        planes = ()
        for plane in tl.static_range(planes_of(FORMAT)):
            planes = planes + (x[plane] * shrunk(plane, FORMAT),)
        xs = xs + (planes,)
    return xs


@triton.jit
def normed(x, weight, eps, HIDDEN: tl.constexpr, FORMAT: tl.constexpr):
    """x / sqrt(mean of squares + eps) * weight, over all planes."""
    square = x[0] * x[0]
    for plane in tl.static_range(1, planes_of(FORMAT)):
        square += x[plane] * x[plane]
    mean_square = tl.sum(tl.sum(tl.sum(square, axis=2), axis=1), axis=0) / HIDDEN
    size = tl.sqrt_rn(mean_square + eps)
    planes = ()
    for plane in tl.static_range(planes_of(FORMAT)):
        planes = planes + (x[plane] / size * weight[plane],)
    return planes


@triton.jit
def load_rows(
    codes_ptr,
    scales_ptr,
    distance,
    row,
    live,
    HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr,
    UNITS: tl.constexpr,
    V: tl.constexpr,
    STEP: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Of some rows codes [UNITS, BLOCK_N, V], scales [UNITS, BLOCK_N], and `magic_of` them; not live are not read."""
    unit = tl.arange(0, UNITS)[:, None, None]
    element = unit * V + tl.arange(0, V)[None, None, :]
    # int64 before the multiply: the layers of a model may lie in one tensor
    row = row.to(tl.int64) * distance
    at = row[None, :, None] * STEP + element
    if FORMAT == "float":
        codes = tl.load(
            codes_ptr + at, mask=(element < HIDDEN) & live[None, :, None], other=0.0, eviction_policy="evict_first"
        )
        scale = tl.full([1, 1], 1.0, tl.float32)
    else:
        inside = unit < 2 * SCALES // 16  # packed rows are filled up with zeros to whole units
        codes = tl.load(codes_ptr + at, mask=inside & live[None, :, None], other=0, eviction_policy="evict_first")
        codes = flipped(codes, FORMAT)
        unit = tl.arange(0, UNITS)[:, None]
        group = unit if FORMAT == "int4" else unit // INT8_UNITS
        first = row[None, :] * 8 + SCALES  # a packed row starts on a unit: 8 bf16
        scale = tl.load(scales_ptr + first + group, mask=(unit < 2 * SCALES // 16) & live[None, :], other=0.0)
        scale = scale.to(tl.float32)
    return codes, scale, magic_of(distance)


@triton.jit
def flipped(codes, FORMAT: tl.constexpr):
    """int8 + 128, by the sign bits of a whole word; other formats as they are."""
    return codes ^ -0x7F7F7F80 if FORMAT == "int8" else codes


@triton.jit
def magic_of(distance):
    """MAGIC, from the distance of rows, which is above 0: the compiler must not see that, for a logical instruction
    takes one constant, and what is to do with two would be two of them."""
    return MAGIC | (distance >> 31)


@triton.jit
def decode(codes, magic, plane, FORMAT: tl.constexpr):
    """Weights of one plane in fp32, times 2**shift and without their scale; exact.

    The bits of a code stay where they are in their half of a word: a logical instruction puts them into the mantissa of
    2**23, a subtraction takes that off again. The sign bit of int8 has been flipped, which adds 128.
    """
    if FORMAT == "float":
        weight = codes.to(tl.float32)
    else:
        BITS: tl.constexpr = 4 if FORMAT == "int4" else 8
        SHIFT: tl.constexpr = shift_of(plane, FORMAT)
        half = codes if plane * BITS < 16 else codes >> 16
        word = (half & ((2**BITS - 1) << SHIFT)) | magic
        weight = word.to(tl.float32, bitcast=True) - (2.0**23 + 2.0 ** (BITS - 1 + SHIFT))
    return weight


@triton.jit
def dots(read, x, FORMAT: tl.constexpr):
    """Dot of each row with one token, [BLOCK_N] fp32."""
    codes, scale, magic = read
    product = decode(codes, magic, 0, FORMAT) * x[0]
    for plane in tl.static_range(1, planes_of(FORMAT)):
        product += decode(codes, magic, plane, FORMAT) * x[plane]
    by_unit = tl.sum(product, axis=2)
    if FORMAT != "float":
        by_unit *= scale
    return tl.sum(by_unit, axis=0)
