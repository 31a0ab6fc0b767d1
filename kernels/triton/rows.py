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

MAGIC = tl.constexpr(0x4B000000)  # 2**23 as fp32 bits: or a byte into it and subtract, faster than converting
INT8_UNITS = tl.constexpr(GROUP["int8"] // 16)  # units of a group; a group of int4 is one unit


@triton.jit
def load_x(x_ptr, token, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr):
    """One token in fp32: a tuple of a [UNITS, 1, V] for every plane. Zero behind the end of the row."""
    PLANES: tl.constexpr = 8 if FORMAT == "int4" else 1
    unit = tl.arange(0, UNITS)[:, None, None]
    lane = tl.arange(0, V)[None, None, :]
    planes = ()
    for plane in tl.static_range(PLANES):
        column = (unit * PLANES + plane) * V + lane
        x = tl.load(x_ptr + token * HIDDEN + column, mask=column < HIDDEN, other=0.0)
        planes = planes + (x.to(tl.float32),)
    return planes


@triton.jit
def load_tokens(
    x_ptr, norm_ptr, eps,
    NORM: tl.constexpr, TOKENS: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr,
    V: tl.constexpr,
):  # fmt: skip
    """All tokens, a tuple of what `load_x` gives; with NORM their RMSNorm, which every program computes for itself."""
    xs = ()
    if NORM:
        weight = load_x(norm_ptr, 0, HIDDEN, FORMAT, UNITS, V)
    for token in tl.static_range(TOKENS):
        x = load_x(x_ptr, token, HIDDEN, FORMAT, UNITS, V)
        if NORM:
            xs = xs + (normed(x, weight, eps, HIDDEN, FORMAT),)
        else:
            xs = xs + (x,)
    return xs


@triton.jit
def normed(x, weight, eps, HIDDEN: tl.constexpr, FORMAT: tl.constexpr):
    """x / sqrt(mean of squares + eps) * weight, over all planes."""
    PLANES: tl.constexpr = 8 if FORMAT == "int4" else 1
    square = x[0] * x[0]
    for plane in tl.static_range(1, PLANES):
        square += x[plane] * x[plane]
    mean_square = tl.sum(tl.sum(tl.sum(square, axis=2), axis=1), axis=0) / HIDDEN
    size = tl.sqrt_rn(mean_square + eps)
    planes = ()
    for plane in tl.static_range(PLANES):
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
    """Codes [UNITS, BLOCK_N, V] and scales [UNITS, BLOCK_N] of some rows, undecoded; rows not live are not read."""
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
        unit = tl.arange(0, UNITS)[:, None]
        group = unit if FORMAT == "int4" else unit // INT8_UNITS
        first = row[None, :] * 8 + SCALES  # a packed row starts on a unit: 8 bf16
        scale = tl.load(scales_ptr + first + group, mask=(unit < 2 * SCALES // 16) & live[None, :], other=0.0)
        scale = scale.to(tl.float32)
    return codes, scale


@triton.jit
def decode(codes, plane, FORMAT: tl.constexpr):
    """Weights of one plane in fp32, without their scale; exact."""
    if FORMAT == "float":
        weight = codes.to(tl.float32)
    elif FORMAT == "int8":  # flip the sign bit: code + 128
        byte = (codes.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint32)
        weight = (byte | MAGIC).to(tl.float32, bitcast=True) - 8388736.0
    else:
        nibble = (codes >> (4 * plane)) & 0xF
        weight = (nibble | MAGIC).to(tl.float32, bitcast=True) - 8388616.0
    return weight


@triton.jit
def dots(codes, scale, x, FORMAT: tl.constexpr):
    """Dot of each row with one token, [BLOCK_N] fp32."""
    product = decode(codes, 0, FORMAT) * x[0]
    if FORMAT == "int4":
        for plane in tl.static_range(1, 8):
            product += decode(codes, plane, FORMAT) * x[plane]
    by_unit = tl.sum(product, axis=2)
    if FORMAT != "float":
        by_unit *= scale
    return tl.sum(by_unit, axis=0)
