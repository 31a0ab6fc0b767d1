"""Products of rows with 5 to 16 tokens, on the tensor cores, without rounding weights or tokens.

tf32 keeps 11 significant bits and the range of fp32. So bf16 and fp16 weights, and int4 weights times their scale, are
exact in it; an fp32 token is cut into TERMS = 3 pieces of 11 bits, and the products of pieces are exact in fp32, where
they are summed. An int8 weight is used without its scale, which is multiplied in after each group. fp32 weights would
need 3 x 3 pieces and take the ordinary cores (input_precision "ieee").
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..checks import MAX_ROWS
from ..quant import GROUP
from .rows import MAGIC

INT8_GROUP = tl.constexpr(GROUP["int8"])
COLUMNS = tl.constexpr(MAX_ROWS)  # of a tile of tokens, live or not


@triton.jit
def dot(a, b, acc, CUT: tl.constexpr, TERMS: tl.constexpr):
    """acc + a @ b in fp32. Operand CUT (0 or 1) is cut into TERMS pieces, the other is exact in tf32; 0: neither is."""
    if TERMS == 0:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    else:
        rest = b if CUT == 1 else a
        for _ in tl.static_range(TERMS):
            piece = (rest.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # the upper 11 bits
            if CUT == 1:
                acc = tl.dot(a, piece, acc, input_precision="tf32")
            else:
                acc = tl.dot(piece, b, acc, input_precision="tf32")
            rest = tl.where(piece == rest, 0.0, rest - piece)  # not inf - inf
    return acc


@triton.jit
def unpack(codes, plane, FORMAT: tl.constexpr):
    """Weights of one plane in fp32, without their scale; exact. Unlike in `rows` int8 comes in bytes, int4 in words."""
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
def products(
    x_ptr,
    tokens,
    codes_ptr,
    scales_ptr,
    distance,
    row,
    live,
    TERMS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    STAGES: tl.constexpr,
    HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr,
    UNITS: tl.constexpr,
    V: tl.constexpr,
    STEP: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Rows times tokens, [BLOCK_N, COLUMNS] fp32; zero for rows not live and tokens that are not there."""
    PLANES: tl.constexpr = 8 if FORMAT == "int4" else 1
    ELEMENTS: tl.constexpr = HIDDEN if FORMAT == "float" else 2 * SCALES // (16 // V)  # of a row
    token = tl.arange(0, COLUMNS)
    row = row.to(tl.int64) * distance
    acc = tl.zeros([row.shape[0], COLUMNS], dtype=tl.float32)
    for start in tl.range(0, ELEMENTS, BLOCK_E, num_stages=STAGES):
        element = start + tl.arange(0, BLOCK_E)
        mask = live[:, None] & (element < ELEMENTS)[None, :]
        codes = tl.load(
            codes_ptr + row[:, None] * STEP + element[None, :], mask=mask, other=0, eviction_policy="evict_first"
        )
        if FORMAT == "int4":
            at = row[:, None] * 8 + SCALES + (element // V)[None, :]
            scale = tl.load(scales_ptr + at, mask=mask, other=0.0).to(tl.float32)
        for plane in tl.static_range(PLANES):
            column = (element // V * PLANES + plane) * V + element % V
            at = token[None, :] * HIDDEN + column[:, None]
            x = tl.load(x_ptr + at, mask=(token < tokens)[None, :] & (column < HIDDEN)[:, None], other=0.0)
            weight = unpack(codes, plane, FORMAT)
            if FORMAT == "int8":  # these columns lie in one group
                scale = tl.load(scales_ptr + row * 8 + SCALES + start // INT8_GROUP, mask=live, other=0.0)
                group = dot(weight, x.to(tl.float32), tl.zeros_like(acc), 1, TERMS)
                acc += group * scale.to(tl.float32)[:, None]
            else:
                if FORMAT == "int4":
                    weight = weight * scale
                acc = dot(weight, x.to(tl.float32), acc, 1, TERMS)
    return acc
