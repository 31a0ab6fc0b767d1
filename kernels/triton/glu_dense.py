"""`kernels.glu_dense`, and `kernels.plain_dense` without up rows: rows of every neuron, then down rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rms_norm
from .activate import gate_value, weigh
from .configs import TILE, by_rows, fitting_stages, persistent, pieces, row_tile
from .down import down, new_tickets
from .gpu import gpu_of
from .layout import UNIT_BYTES, Matrices, Norm, Residual, matrices
from .overlap import ask_for_rows, wait_for_previous
from .rows import dots, load_rows, load_tokens
from .sums import zero_tickets
from .tile_kernels import tile_select_kernel
from .up import add_to_tally


@triton.jit
def gate_up_kernel(
    x_ptr, norm_ptr, gate_ptr, gate_scales_ptr, gate_distance, up_ptr, up_scales_ptr, up_distance, bias_ptr, h_ptr,
    tally_ptr, ticket_ptr, eps, threshold, neurons, tickets,
    NORM: tl.constexpr, TOKENS: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, UP: tl.constexpr,
    ON_UP: tl.constexpr, TICKETS: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr,
    SCALES: tl.constexpr,
):  # fmt: skip
    begin, step = tl.program_id(0) * BLOCK_N, tl.num_programs(0) * BLOCK_N
    ask_for_rows(
        gate_ptr, gate_distance, begin, step, neurons, OVERLAP, STAGES, BLOCK_N, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
    )
    if UP:
        ask_for_rows(
            up_ptr, up_distance, begin, step, neurons, OVERLAP, STAGES, BLOCK_N, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
        )
    wait_for_previous(OVERLAP)
    zero_tickets(ticket_ptr, tickets, TICKETS)
    xs = load_tokens(x_ptr, norm_ptr, eps, NORM, TOKENS, HIDDEN, FORMAT, UNITS, V)
    rows = tl.zeros([BLOCK_N], dtype=tl.int32)
    nonzero = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in tl.range(begin, neurons, step, num_stages=STAGES):
        neuron = start + tl.arange(0, BLOCK_N)
        live = neuron < neurons
        gate = load_rows(gate_ptr, gate_scales_ptr, gate_distance, neuron, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES)
        if UP:
            up = load_rows(up_ptr, up_scales_ptr, up_distance, neuron, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES)
        if BIAS:
            bias = tl.load(bias_ptr + neuron, mask=live, other=0.0)
        rows += live.to(tl.int32)
        for token in tl.static_range(TOKENS):
            g = dots(gate, xs[token], FORMAT)
            if BIAS:
                g += bias
            h = gate_value(g, threshold, KIND)
            if UP:
                h = weigh(h, dots(up, xs[token], FORMAT), ON_UP)
            tl.store(h_ptr + token * neurons + neuron, h, mask=live)
            nonzero += (live & (h != 0.0)).to(tl.int32)
    count = tl.sum(rows, axis=0)
    add_to_tally(tally_ptr, count, count, tl.sum(nonzero, axis=0))


def launch(
    x: Tensor, gate: Tensor, up: Tensor, down_rows: Tensor, kind: int, threshold: float, on_up: bool, tally: Tensor,
    norm: Norm | None = None, residual: Residual | None = None, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """As the op; or of x normed, or added to a residual: residual + scale * ffn(norm(x)). See `overlap`."""
    tickets = new_tickets(x, down_rows)
    h = every_neuron(x, matrices(x.shape[1], gate, up), None, kind, threshold, on_up, tally, tickets, norm, overlap)
    return down(x, down_rows, h, tickets, residual, overlap=overlap)


def every_neuron(
    x: Tensor, weights: Matrices, bias: Tensor | None, kind: int, threshold: float, on_up: bool, tally: Tensor,
    tickets: Tensor, norm: Norm | None = None, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """h of every neuron, [tokens, neurons], from a gate with or without bias, or from a gate and an up projection."""
    tokens = x.shape[0]
    with_up = len(weights.pointers) == 2
    small = by_rows(weights, tokens)
    weights = weights.words if small else weights
    h = x.new_empty(tokens, weights.rows, dtype=torch.float32)
    pointers = (*weights.pointers[0], *weights.pointers[-1], h if bias is None else bias)
    shared = {
        "KIND": kind,
        "BIAS": bias is not None,
        "UP": with_up,
        "ON_UP": on_up,
        "TICKETS": triton.next_power_of_2(tickets.numel()),
        **weights.row,
    }
    if small:
        front, eps = norm or (x, 0.0)
        block_n, warps, stages = row_tile(weights)
        if with_up:
            block_n = max(1, block_n // 2)  # a tile is rows of both
            stages = fitting_stages(stages, 2 * block_n * weights.row["UNITS"] * UNIT_BYTES)
        gate_up_kernel[(persistent(gpu_of(x.device), weights, tokens, weights.rows, block_n),)](
            x, front, *pointers, h, tally, tickets, eps, threshold, weights.rows, tickets.numel(),
            NORM=norm is not None, OVERLAP=overlap, TOKENS=tokens, BLOCK_N=block_n, STAGES=stages, num_warps=warps,
            launch_pdl=overlap, **shared,
        )  # fmt: skip
    else:
        x = rms_norm.launch(x, *norm) if norm else x
        block_n, warps, stages, block_e = TILE[weights.format]
        untouched = tickets
        tile_select_kernel[(triton.cdiv(weights.rows, block_n),)](
            x, *pointers, untouched, untouched, untouched, h, untouched, tally, tickets, threshold, tokens,
            weights.rows, weights.rows, tickets.numel(), LISTED=False, DENSE=True, FFN=True, BLOCK_N=block_n,
            TERMS=pieces(x.dtype, weights.dtype), BLOCK_E=block_e, STAGES=stages, num_warps=warps, **shared,
        )  # fmt: skip
    return h
