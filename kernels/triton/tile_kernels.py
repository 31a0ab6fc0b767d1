"""The kernels of 5 to 16 tokens that read whole rows: a linear, a gate with its active neurons, up rows of a list."""

from __future__ import annotations

import triton
import triton.language as tl

from .activate import NAME, gate_value, if_open, value_of_open, weigh
from .segments import write_segment
from .sums import store_sum, zero_tickets
from .tiles import COLUMNS, products
from .up import add_to_tally, count_predicted


@triton.jit
def tile_linear_kernel(
    x_ptr, codes_ptr, scales_ptr, distance, residual_ptr, y_ptr, alpha, tokens, rows,
    RESIDUAL: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr, BLOCK_E: tl.constexpr, STAGES: tl.constexpr,
    HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr,
    SCALES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = products(
        x_ptr, tokens, codes_ptr, scales_ptr, distance, row, row < rows, TERMS, BLOCK_E, STAGES, HIDDEN, FORMAT, UNITS,
        V, STEP, SCALES,
    )  # fmt: skip
    token = tl.arange(0, COLUMNS)
    live = (token < tokens)[None, :] & (row < rows)[:, None]
    store_sum(y_ptr, residual_ptr, token[None, :] * rows + row[:, None], live, y, alpha, RESIDUAL)


@triton.jit
def tile_select_kernel(
    x_ptr, gate_ptr, gate_scales_ptr, gate_distance, up_ptr, up_scales_ptr, up_distance, bias_ptr, listed_ptr,
    listed_count_ptr, index_ptr, value_ptr, count_ptr, tally_ptr, ticket_ptr, threshold, tokens, capacity, places,
    tickets,
    KIND: tl.constexpr, BIAS: tl.constexpr, LISTED: tl.constexpr, DENSE: tl.constexpr, FFN: tl.constexpr,
    UP: tl.constexpr, ON_UP: tl.constexpr, TICKETS: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
    BLOCK_E: tl.constexpr, STAGES: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr,
    V: tl.constexpr, STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """BLOCK_N neurons and their segment, as `select`; with DENSE every up row, and h at its neuron."""
    if FFN:
        zero_tickets(ticket_ptr, tickets, TICKETS)
    first = tl.program_id(0) * BLOCK_N
    end = capacity
    if LISTED:
        end = tl.minimum(tl.load(listed_count_ptr), capacity)
        if first >= end:
            tl.store(count_ptr + tl.program_id(0), 0)
            return
        count_predicted(tally_ptr, tl.minimum(end - first, BLOCK_N))
    neuron = first + tl.arange(0, BLOCK_N)
    there = neuron < end
    if LISTED:
        neuron = tl.load(listed_ptr + neuron, mask=there, other=0)
    token = tl.arange(0, COLUMNS)
    live = (token < tokens)[None, :] & there[:, None]
    g = products(
        x_ptr, tokens, gate_ptr, gate_scales_ptr, gate_distance, neuron, there, TERMS, BLOCK_E, STAGES, HIDDEN, FORMAT,
        UNITS, V, STEP, SCALES,
    )  # fmt: skip
    if BIAS:
        g += tl.load(bias_ptr + neuron, mask=there, other=0.0)[:, None]
    if DENSE:
        value = tl.where(live, gate_value(g, threshold, KIND), 0.0)
        active = there
        place = neuron
    else:
        g = tl.where(live, if_open(g, threshold, KIND), 0.0)
        value = value_of_open(g, KIND)
        active = tl.max((g != 0.0).to(tl.int32), axis=1) > 0
        place, _ = write_segment(active, neuron, first, index_ptr, count_ptr)
    if UP:
        u = products(
            x_ptr, tokens, up_ptr, up_scales_ptr, up_distance, neuron, active, TERMS, BLOCK_E, STAGES, HIDDEN, FORMAT,
            UNITS, V, STEP, SCALES,
        )  # fmt: skip
        value = weigh(value, u, ON_UP)
    if FFN:
        count_products(tally_ptr, value, active, DENSE)
    if KIND != NAME:
        to = value_ptr + token[None, :] * places + place[:, None]
        tl.store(to, value, mask=active[:, None] & (token < tokens)[None, :])


@triton.jit
def tile_up_kernel(
    x_ptr, up_ptr, up_scales_ptr, up_distance, index_ptr, value_ptr, count_ptr, h_ptr, tally_ptr, ticket_ptr, tokens,
    capacity, tickets,
    ON_UP: tl.constexpr, TICKETS: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr, BLOCK_E: tl.constexpr,
    STAGES: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr,
    STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """BLOCK_N slots of a list; the programs behind its end have nothing to do."""
    zero_tickets(ticket_ptr, tickets, TICKETS)
    count = tl.minimum(tl.load(count_ptr), capacity)
    slot = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = slot < count
    if tl.program_id(0) * BLOCK_N < count:
        neuron = tl.load(index_ptr + slot, mask=live, other=0)
        u = products(
            x_ptr, tokens, up_ptr, up_scales_ptr, up_distance, neuron, live, TERMS, BLOCK_E, STAGES, HIDDEN, FORMAT,
            UNITS, V, STEP, SCALES,
        )  # fmt: skip
        token = tl.arange(0, COLUMNS)
        mask = (token < tokens)[None, :] & live[:, None]
        at = token[None, :] * capacity + slot[:, None]
        h = weigh(tl.load(value_ptr + at, mask=mask, other=0.0), u, ON_UP)
        count_products(tally_ptr, h, live, False)
        tl.store(h_ptr + at, h, mask=mask)


@triton.jit
def count_products(tally_ptr, h, listed, DENSE: tl.constexpr):
    """Add what [BLOCK_N, COLUMNS] products mean to the tally; a dense FFN reads the down row of every neuron."""
    nonzero = (h != 0.0).to(tl.int32)
    up_rows = tl.sum(listed.to(tl.int32), axis=0)
    down_rows = up_rows if DENSE else tl.sum(tl.max(nonzero, axis=1), axis=0)
    add_to_tally(tally_ptr, up_rows, down_rows, tl.sum(tl.sum(nonzero, axis=1), axis=0))
