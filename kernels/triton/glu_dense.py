"""`kernels.glu_dense`: gate and up rows of every neuron, then down rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rms_norm
from .activate import gate_value, weigh
from .configs import TILE, by_rows, persistent, pieces, row_tile
from .down import down, new_tickets
from .gpu import gpu_of
from .layout import Norm, Residual, matrices
from .rows import dots, load_rows, load_tokens
from .tile_kernels import tile_select_kernel
from .up import add_to_tally


@triton.jit
def gate_up_kernel(
    x_ptr, norm_ptr, gate_ptr, gate_scales_ptr, gate_distance, up_ptr, up_scales_ptr, up_distance, h_ptr, tally_ptr,
    ticket_ptr, eps, threshold, neurons, tickets,
    NORM: tl.constexpr, TOKENS: tl.constexpr, KIND: tl.constexpr, ON_UP: tl.constexpr, TICKETS: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr,
    V: tl.constexpr, STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) == 0:
        tl.store(ticket_ptr + tl.arange(0, TICKETS), 0, mask=tl.arange(0, TICKETS) < tickets)
    xs = load_tokens(x_ptr, norm_ptr, eps, NORM, TOKENS, HIDDEN, FORMAT, UNITS, V)
    rows = tl.zeros([BLOCK_N], dtype=tl.int32)
    nonzero = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in tl.range(tl.program_id(0) * BLOCK_N, neurons, tl.num_programs(0) * BLOCK_N, num_stages=STAGES):
        neuron = start + tl.arange(0, BLOCK_N)
        live = neuron < neurons
        gate, gate_scale = load_rows(
            gate_ptr, gate_scales_ptr, gate_distance, neuron, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
        )
        up, up_scale = load_rows(
            up_ptr, up_scales_ptr, up_distance, neuron, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
        )
        rows += live.to(tl.int32)
        for token in tl.static_range(TOKENS):
            value = gate_value(dots(gate, gate_scale, xs[token], FORMAT), threshold, KIND)
            h = weigh(value, dots(up, up_scale, xs[token], FORMAT), ON_UP)
            tl.store(h_ptr + token * neurons + neuron, h, mask=live)
            nonzero += (live & (h != 0.0)).to(tl.int32)
    count = tl.sum(rows, axis=0)
    add_to_tally(tally_ptr, count, count, tl.sum(nonzero, axis=0))


def launch(
    x: Tensor, gate: Tensor, up: Tensor, down_rows: Tensor, kind: int, threshold: float, on_up: bool, tally: Tensor,
    norm: Norm | None = None, residual: Residual | None = None,
) -> Tensor:  # fmt: skip
    """As the op; or of x normed, or added to a residual: residual + scale * ffn(norm(x))."""
    tokens = x.shape[0]
    weights = matrices(x.shape[1], gate, up)
    tickets = new_tickets(x, down_rows)
    h = x.new_empty(tokens, weights.rows, dtype=torch.float32)
    pointers = (*weights.pointers[0], *weights.pointers[1])
    shared = {"KIND": kind, "ON_UP": on_up, "TICKETS": triton.next_power_of_2(tickets.numel()), **weights.row}
    if by_rows(weights, tokens):
        front, eps = norm or (x, 0.0)
        block_n, warps, stages = row_tile(weights)
        block_n = max(1, block_n // 2)  # a tile is two rows of each
        gate_up_kernel[(persistent(gpu_of(x.device), weights, tokens, weights.rows, block_n),)](
            x, front, *pointers, h, tally, tickets, eps, threshold, weights.rows, tickets.numel(),
            NORM=norm is not None, TOKENS=tokens, BLOCK_N=block_n, STAGES=stages, num_warps=warps, **shared,
        )  # fmt: skip
    else:
        x = rms_norm.launch(x, *norm) if norm else x
        block_n, warps, stages, block_e = TILE[weights.format]
        tile_select_kernel[(triton.cdiv(weights.rows, block_n),)](
            x, *pointers, tickets, h, tickets, tally, tickets, threshold, tokens, weights.rows, tickets.numel(),
            DENSE=True, UP=True, BLOCK_N=block_n, TERMS=pieces(x.dtype, weights.dtype),
            BLOCK_E=block_e, STAGES=stages, num_warps=warps, **shared,
        )  # fmt: skip
    return down(x, down_rows, h, tickets, residual)
