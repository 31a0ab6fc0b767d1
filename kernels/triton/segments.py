"""Lists of neurons in segments: how many each program found, and where slot k of the whole list lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """Ascending segments of a list, from programs that own `own` consecutive neurons each.

    Args:
        index: [places] int32; segment s stands from place s * own on.
        value: [tokens, places] fp32, what belongs to the neuron at the same place; of no tokens for names alone.
        count: [segments] int32, how many neurons each segment has.
        own: places a program owns.
    """

    index: Tensor
    value: Tensor
    count: Tensor
    own: int


@triton.jit
def write_segment(active, neuron, first, index_ptr, count_ptr):
    """The active ones of [OWN] neurons, from place `first` on: the place of each, and how many they are."""
    active = active.to(tl.int32)
    count = tl.sum(active, axis=0)
    place = first + tl.cumsum(active, axis=0) - 1
    tl.store(index_ptr + place, neuron, mask=active != 0)
    tl.store(count_ptr + tl.program_id(0), count)
    return place, count


@triton.jit
def load_counts(count_ptr, segments, SEGMENTS: tl.constexpr):
    """(counts [SEGMENTS], where each segment ends in the whole list [SEGMENTS], how long that is)."""
    segment = tl.arange(0, SEGMENTS)
    counts = tl.load(count_ptr + segment, mask=segment < segments, other=0)
    return counts, tl.cumsum(counts, axis=0), tl.sum(counts, axis=0)


@triton.jit
def position(slot, counts, ends, own):
    """Where slots of the whole list lie: each earlier segment moves them by the places it left empty."""
    before = ends[None, :] <= slot[:, None]
    return slot + tl.sum(tl.where(before, (own - counts)[None, :], 0), axis=1)


@triton.jit
def join_kernel(
    index_ptr,
    value_ptr,
    count_ptr,
    out_index_ptr,
    out_value_ptr,
    out_count_ptr,
    neurons,
    own,
    TOKENS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    OWN: tl.constexpr,
):
    """One segment to its place in one list."""
    program = tl.program_id(0)
    segment = tl.arange(0, SEGMENTS)
    counts = tl.load(count_ptr + segment, mask=segment < tl.num_programs(0), other=0)
    before = tl.sum(tl.where(segment < program, counts, 0), axis=0)
    count = tl.sum(tl.where(segment == program, counts, 0), axis=0)
    offset = tl.arange(0, OWN)
    live = offset < count
    source, target = program * own + offset, before + offset
    tl.store(out_index_ptr + target, tl.load(index_ptr + source, mask=live), mask=live)
    for token in tl.static_range(TOKENS):
        value = tl.load(value_ptr + token * neurons + source, mask=live)
        tl.store(out_value_ptr + token * neurons + target, value, mask=live)
    if program == 0:
        tl.store(out_count_ptr, tl.sum(counts, axis=0))


def join(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """One ascending list: index [neurons], count [1], value [tokens, neurons]."""
    tokens, neurons = segments.value.shape
    index, value = torch.empty_like(segments.index), torch.empty_like(segments.value)
    count = segments.count.new_empty(1)
    programs = segments.count.numel()
    join_kernel[(programs,)](
        segments.index, segments.value, segments.count, index, value, count, neurons, segments.own,
        TOKENS=tokens, SEGMENTS=triton.next_power_of_2(programs), OWN=triton.next_power_of_2(segments.own), num_warps=4,
    )  # fmt: skip
    return index, count, value
