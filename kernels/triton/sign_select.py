"""`kernels.sign_select`: signs in words of 32, exclusive or, and the bits of it counted.

A program owns consecutive neurons and writes their segment, as `select` does; signs are read as `rows` are, a unit of
16 bytes per lane. Every program packs the signs of x for itself: through memory, because a loop over many tokens that
is not unrolled needs few registers and cannot leave its results in them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activate import NAME, if_open
from .configs import persistent, sign_tile
from .gpu import gpu_of
from .layout import matrices
from .rows import load_rows
from .segments import Segments, join, write_segment


@triton.jit
def pack_x(x_ptr, token, columns, word):
    """Signs of one token in these words, [UNITS, 1, V]; 0 behind its end."""
    bit = tl.arange(0, 32)[None, None, None, :]
    column = word[:, :, :, None] * 32 + bit
    x = tl.load(x_ptr + token * columns + column, mask=column < columns, other=0.0)
    # as an integer of its own width: converting a NaN may lose its sign
    sign = x.to(tl.int32, bitcast=True) if x.dtype.primitive_bitwidth == 32 else x.to(tl.int16, bitcast=True)
    return tl.sum((sign < 0).to(tl.int32) << bit, axis=3)


@triton.jit
def count_bits(word):
    """How many bits of 32 are set; the compiler knows this for what it is."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return (((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit
def sign_kernel(
    x_ptr, codes_ptr, scales_ptr, distance, offset_ptr, packed_ptr, named_ptr, index_ptr, count_ptr, columns, neurons,
    own,
    TOKENS: tl.constexpr, OWN: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * own
    end = tl.minimum(first + own, neurons)
    word = tl.arange(0, UNITS)[:, None, None] * V + tl.arange(0, V)[None, None, :]
    packed_ptr += tl.program_id(0) * TOKENS * HIDDEN
    for looped in range(TOKENS):
        tl.store(packed_ptr + looped * HIDDEN + word, pack_x(x_ptr, looped, columns, word), mask=word < HIDDEN)
    tl.debug_barrier()  # the threads of this program read what others of them wrote
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        neuron = start + tl.arange(0, BLOCK_N)
        live = neuron < end
        signs, _, _ = load_rows(codes_ptr, scales_ptr, distance, neuron, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES)
        offset = tl.load(offset_ptr + neuron, mask=live, other=0.0)
        named = tl.zeros([BLOCK_N], dtype=tl.float32)
        for token in tl.static_range(TOKENS):
            x = tl.load(packed_ptr + token * HIDDEN + word, mask=word < HIDDEN, other=0)
            differing = tl.sum(tl.sum(count_bits((signs ^ x).to(tl.uint32, bitcast=True)), axis=2), axis=0)
            score = (columns - 2 * differing.to(tl.int32)).to(tl.float32) + offset
            named = tl.maximum(named, if_open(score, 0.0, NAME))
        tl.store(named_ptr + neuron, named, mask=live)

    tl.debug_barrier()
    neuron = first + tl.arange(0, OWN)
    active = tl.load(named_ptr + neuron, mask=neuron < end, other=0.0) != 0.0
    write_segment(active, neuron, first, index_ptr, count_ptr)


def launch(x: Tensor, signs: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    tokens, columns = x.shape
    neurons, words = signs.shape
    rows = matrices(2 * words, signs.view(torch.int32))  # little-endian: the lower half of a word comes first
    block_n, warps, stages = sign_tile(rows)
    own = triton.cdiv(neurons, persistent(gpu_of(x.device), rows, 1, neurons, block_n))  # tokens take few registers
    programs = triton.cdiv(neurons, own)
    index, count = x.new_empty(neurons, dtype=torch.int32), x.new_empty(programs, dtype=torch.int32)
    packed, named = index.new_empty(programs, tokens, 2 * words), x.new_empty(neurons, dtype=torch.float32)
    sign_kernel[(programs,)](
        x, *rows.pointers[0], offset, packed, named, index, count, columns, neurons, own, TOKENS=tokens,
        OWN=triton.next_power_of_2(own), BLOCK_N=block_n, STAGES=stages, num_warps=warps, **rows.row,
    )  # fmt: skip
    index, count, _ = join(Segments(index, named.new_empty(0, neurons), count, own))
    return index, count
