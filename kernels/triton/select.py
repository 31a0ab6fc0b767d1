"""The gate of 1 to 4 tokens, its active neurons in segments, and if wanted their up rows as well, in one launch.

A program owns OWN consecutive neurons, or a balanced run of those that a list names. It reads their gate rows, scans
its own short list of results, and writes a *segment*: the ascending ids of its active neurons from place program * OWN
on, and how many they are. There is no serial tail, no list ordered by atomics, and what is written does not depend on
scheduling; whoever reads the segments finds the place of slot k by the counts (`segments.position`). With UP the
program goes on to the up rows of its own segment and leaves h = value * up there, so that an exact or predicted FFN is
this launch and `down`; where an FFN has no up projection, the value is h.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rms_norm
from .activate import NAME, if_open, value_of_open
from .configs import TILE, by_rows, persistent, pieces, row_tile
from .gpu import gpu_of
from .layout import Matrices, Norm
from .overlap import ask_for_rows, wait_for_previous
from .rows import dots, load_rows, load_tokens
from .segments import Segments, write_segment
from .sums import zero_tickets
from .tile_kernels import tile_select_kernel
from .up import add_to_tally, count_predicted, up_of_slots


@triton.jit
def select_kernel(
    x_ptr,
    norm_ptr,
    gate_ptr,
    gate_scales_ptr,
    gate_distance,
    up_ptr,
    up_scales_ptr,
    up_distance,
    bias_ptr,
    listed_ptr,
    listed_count_ptr,
    open_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    tally_ptr,
    ticket_ptr,
    eps,
    threshold,
    capacity,
    own,
    places,
    tickets,
    NORM: tl.constexpr,
    TOKENS: tl.constexpr,
    KIND: tl.constexpr,
    BIAS: tl.constexpr,
    LISTED: tl.constexpr,
    FFN: tl.constexpr,
    UP: tl.constexpr,
    ON_UP: tl.constexpr,
    OWN: tl.constexpr,
    TICKETS: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr,
    UNITS: tl.constexpr,
    V: tl.constexpr,
    STEP: tl.constexpr,
    SCALES: tl.constexpr,
):
    program = tl.program_id(0)
    first = program * own  # place of its segment
    if not LISTED:
        ask_for_rows(
            gate_ptr, gate_distance, first, BLOCK_N, capacity, OVERLAP, STAGES, BLOCK_N, HIDDEN, FORMAT, UNITS, V, STEP,
            SCALES,
        )  # fmt: skip
    wait_for_previous(OVERLAP)
    if LISTED:
        listed = tl.minimum(tl.load(listed_count_ptr), capacity)
        begin = program * listed // tl.num_programs(0)
        end = (program + 1) * listed // tl.num_programs(0)
        count_predicted(tally_ptr, end - begin)
    else:
        begin = first
        end = tl.minimum(first + own, capacity)
    xs = load_tokens(x_ptr, norm_ptr, eps, NORM, TOKENS, HIDDEN, FORMAT, UNITS, V)

    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        slot = start + tl.arange(0, BLOCK_N)
        neuron = slot
        if LISTED:
            neuron = tl.load(listed_ptr + slot, mask=slot < end, other=0)
        read = load_rows(
            gate_ptr, gate_scales_ptr, gate_distance, neuron, slot < end, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
        )
        if BIAS:
            bias = tl.load(bias_ptr + neuron, mask=slot < end, other=0.0)
        for token in tl.static_range(TOKENS):
            g = dots(read, xs[token], FORMAT)
            if BIAS:
                g += bias
            g = if_open(g, threshold, KIND)
            tl.store(open_ptr + token * places + first + slot - begin, g, mask=slot < end)

    tl.debug_barrier()  # the threads of this program read what others of them wrote
    own_place = first + tl.arange(0, OWN)
    neuron = begin + tl.arange(0, OWN)
    live = neuron < end
    if LISTED:
        neuron = tl.load(listed_ptr + neuron, mask=live, other=0)
    active = tl.zeros([OWN], dtype=tl.int1)
    for token in tl.static_range(TOKENS):
        active = active | (tl.load(open_ptr + token * places + own_place, mask=live, other=0.0) != 0.0)
    place, count = write_segment(active, neuron, first, index_ptr, count_ptr)
    if KIND != NAME:
        down_rows = tl.zeros([OWN], dtype=tl.int1)
        nonzero = tl.zeros([OWN], dtype=tl.int32)
        for token in tl.static_range(TOKENS):
            g = tl.load(open_ptr + token * places + own_place, mask=active, other=0.0)
            value = value_of_open(g, KIND)
            tl.store(value_ptr + token * places + place, value, mask=active)
            down_rows = down_rows | (value != 0.0)
            nonzero += (value != 0.0).to(tl.int32)
        if FFN and not UP:
            add_to_tally(tally_ptr, count, tl.sum(down_rows.to(tl.int32), axis=0), tl.sum(nonzero, axis=0))
    if FFN:
        zero_tickets(ticket_ptr, tickets, TICKETS)
    if UP:
        tl.debug_barrier()  # h takes the place of what has been scanned
        up_of_slots(
            xs, up_ptr, up_scales_ptr, up_distance, index_ptr, value_ptr, open_ptr, tally_ptr, first, first + count,
            places, TOKENS, ON_UP, BLOCK_N, STAGES, HIDDEN, FORMAT, UNITS, V, STEP, SCALES,
        )  # fmt: skip


def select(
    x: Tensor, weights: Matrices, kind: int, threshold: float, on_up: bool = False, tally: Tensor | None = None,
    tickets: Tensor | None = None, norm: Norm | None = None, bias: Tensor | None = None,
    listed: tuple[Tensor, Tensor] | None = None, overlap: bool = False,
) -> Segments:  # fmt: skip
    """Launch it over a gate, over a gate and an up projection, or over the matrix of a guess.

    Args:
        x: [tokens, hidden].
        weights: gate; or gate and up, and then `value` of the result is h.
        kind, threshold, on_up: the activation; kind NAME is a guess, whose result has no values.
        tally: of an FFN, gets what was done.
        tickets: of an FFN, zeroed for `down`.
        norm: in front of x.
        bias: [neurons] fp32, added to what the gate gives.
        listed: index and count of the neurons to look at; None for all.
        overlap: see `overlap`.
    """
    tokens, neurons = x.shape[0], weights.rows
    capacity = neurons if listed is None else max(1, listed[0].numel())
    with_up = len(weights.pointers) == 2
    small = by_rows(weights, tokens)
    weights = weights.words if small else weights
    block_n, warps, stages = row_tile(weights) if small else TILE[weights.format][:3]
    own = triton.cdiv(capacity, persistent(gpu_of(x.device), weights, tokens, capacity, block_n)) if small else block_n
    programs = triton.cdiv(capacity, own)
    places = capacity if listed is None else 16 * triton.cdiv(programs * own, 16)  # as aligned as neurons mostly are
    opened = x.new_empty(tokens, places, dtype=torch.float32)
    value = opened.new_empty(0 if kind == NAME.value else tokens, places)
    index, count = x.new_empty(places, dtype=torch.int32), x.new_empty(programs, dtype=torch.int32)
    untouched = count
    pointers = (
        *weights.pointers[0], *weights.pointers[-1], untouched if bias is None else bias, *(listed or (count, count)),
    )  # fmt: skip
    written = (
        index, value, count, untouched if tally is None else tally, untouched if tickets is None else tickets,
    )  # fmt: skip
    tickets_there = 1 if tickets is None else tickets.numel()
    shared = {
        "KIND": kind,
        "BIAS": bias is not None,
        "LISTED": listed is not None,
        "FFN": tickets is not None,
        "UP": with_up,
        "ON_UP": on_up,
        "TICKETS": triton.next_power_of_2(tickets_there),
        "BLOCK_N": block_n,
        "STAGES": stages,
        **weights.row,
    }
    if not small:
        x = rms_norm.launch(x, *norm) if norm else x
        tile_select_kernel[(programs,)](
            x, *pointers, *written, threshold, tokens, capacity, places, tickets_there, DENSE=False,
            TERMS=pieces(x.dtype, weights.dtype), BLOCK_E=TILE[weights.format][3], num_warps=warps, **shared,
        )  # fmt: skip
        return Segments(index, value, count, own)
    front, eps = norm or (x, 0.0)
    select_kernel[(programs,)](
        x, front, *pointers, opened, *written, eps, threshold, capacity, own, places, tickets_there,
        NORM=norm is not None, TOKENS=tokens, OWN=triton.next_power_of_2(own), OVERLAP=overlap, num_warps=warps,
        launch_pdl=overlap, **shared,
    )  # fmt: skip
    return Segments(index, opened if with_up else value, count, own)
