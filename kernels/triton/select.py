"""The gate of 1 to 4 tokens, its active neurons in segments, and if wanted their up rows as well, in one launch.

A program owns OWN consecutive neurons. It reads their gate rows, scans its own short list of results, and writes a
*segment*: the ascending ids of its active neurons from position program * OWN on, and how many they are. There is no
serial tail, no list ordered by atomics, and what is written does not depend on scheduling; whoever reads the segments
finds the place of slot k by the counts (`segments.position`). With UP the program goes on to the up rows of its own
segment and leaves h = value * up there, so that an exact FFN is this launch and `down`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rms_norm
from .activate import if_open, value_of_open
from .configs import TILE, by_rows, persistent, pieces, row_tile
from .gpu import gpu_of
from .layout import Matrices, Norm
from .rows import dots, load_rows, load_tokens
from .segments import Segments
from .tile_kernels import tile_select_kernel
from .up import up_of_slots


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
    open_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    tally_ptr,
    ticket_ptr,
    eps,
    threshold,
    neurons,
    own,
    tickets,
    NORM: tl.constexpr,
    TOKENS: tl.constexpr,
    KIND: tl.constexpr,
    UP: tl.constexpr,
    ON_UP: tl.constexpr,
    OWN: tl.constexpr,
    TICKETS: tl.constexpr,
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
    first = program * own
    end = tl.minimum(first + own, neurons)
    xs = load_tokens(x_ptr, norm_ptr, eps, NORM, TOKENS, HIDDEN, FORMAT, UNITS, V)

    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        neuron = start + tl.arange(0, BLOCK_N)
        codes, scale = load_rows(
            gate_ptr, gate_scales_ptr, gate_distance, neuron, neuron < end, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
        )
        for token in tl.static_range(TOKENS):
            g = if_open(dots(codes, scale, xs[token], FORMAT), threshold, KIND)
            tl.store(open_ptr + token * neurons + neuron, g, mask=neuron < end)

    tl.debug_barrier()  # the threads of this program read what others of them wrote
    neuron = first + tl.arange(0, OWN)
    active = tl.zeros([OWN], dtype=tl.int1)
    for token in tl.static_range(TOKENS):
        active = active | (tl.load(open_ptr + token * neurons + neuron, mask=neuron < end, other=0.0) != 0.0)
    count = tl.sum(active.to(tl.int32), axis=0)
    slot = first + tl.cumsum(active.to(tl.int32), axis=0) - 1
    tl.store(index_ptr + slot, neuron, mask=active)
    for token in tl.static_range(TOKENS):
        g = tl.load(open_ptr + token * neurons + neuron, mask=active, other=0.0)
        tl.store(value_ptr + token * neurons + slot, value_of_open(g, KIND), mask=active)
    tl.store(count_ptr + program, count)

    if UP:
        tl.debug_barrier()  # h takes the place of what has been scanned
        up_of_slots(
            xs, up_ptr, up_scales_ptr, up_distance, index_ptr, value_ptr, open_ptr, tally_ptr, first, first + count,
            neurons, TOKENS, ON_UP, BLOCK_N, STAGES, HIDDEN, FORMAT, UNITS, V, STEP, SCALES,
        )  # fmt: skip
        if program == 0:
            tl.store(ticket_ptr + tl.arange(0, TICKETS), 0, mask=tl.arange(0, TICKETS) < tickets)


def select(
    x: Tensor, weights: Matrices, kind: int, threshold: float, on_up: bool = False, tally: Tensor | None = None,
    tickets: Tensor | None = None, norm: Norm | None = None,
) -> Segments:  # fmt: skip
    """Launch it over a gate, or over a gate and an up projection.

    Args:
        x: [tokens, hidden].
        weights: gate; or gate and up, and then `value` of the result is h.
        kind, threshold, on_up: the activation.
        tally: with up, gets what was done.
        tickets: with up, zeroed for `down`.
        norm: in front of x.
    """
    tokens, neurons = x.shape[0], weights.rows
    with_up = len(weights.pointers) == 2
    small = by_rows(weights, tokens)
    block_n, warps, stages = row_tile(weights) if small else TILE[weights.format][:3]
    own = triton.cdiv(neurons, persistent(gpu_of(x.device), weights, tokens, neurons, block_n)) if small else block_n
    programs = triton.cdiv(neurons, own)
    value = x.new_empty(tokens, neurons, dtype=torch.float32)
    index, count = x.new_empty(neurons, dtype=torch.int32), x.new_empty(programs, dtype=torch.int32)
    if tally is None or tickets is None:
        tally = tickets = count  # not touched
    pointers = (*weights.pointers[0], *weights.pointers[-1])
    shared = {
        "KIND": kind,
        "UP": with_up,
        "ON_UP": on_up,
        "TICKETS": triton.next_power_of_2(tickets.numel()) if with_up else 1,
        "BLOCK_N": block_n,
        "STAGES": stages,
        **weights.row,
    }
    if not small:
        x = rms_norm.launch(x, *norm) if norm else x
        tile_select_kernel[(programs,)](
            x, *pointers, index, value, count, tally, tickets, threshold, tokens, neurons, tickets.numel(), DENSE=False,
            TERMS=pieces(x.dtype, weights.dtype), BLOCK_E=TILE[weights.format][3], num_warps=warps,
            **shared,
        )  # fmt: skip
        return Segments(index, value, count, own)
    opened = torch.empty_like(value)
    front, eps = norm or (x, 0.0)
    select_kernel[(programs,)](
        x, front, *pointers, opened, index, value, count, tally, tickets, eps, threshold, neurons, own, tickets.numel(),
        NORM=norm is not None, TOKENS=tokens, OWN=triton.next_power_of_2(own), num_warps=warps, **shared,
    )  # fmt: skip
    return Segments(index, opened if with_up else value, count, own)
