"""`kernels.glu_active`: up rows of a list, then down rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import TILE, by_rows, persistent, pieces, row_tile
from .down import down, new_tickets
from .gpu import gpu_of
from .layout import matrices
from .rows import load_tokens
from .sums import zero_tickets
from .tile_kernels import tile_up_kernel
from .up import up_of_slots


@triton.jit
def up_kernel(
    x_ptr, up_ptr, up_scales_ptr, up_distance, index_ptr, value_ptr, count_ptr, h_ptr, tally_ptr, ticket_ptr,
    capacity, tickets,
    TOKENS: tl.constexpr, ON_UP: tl.constexpr, TICKETS: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr,
    SCALES: tl.constexpr,
):  # fmt: skip
    """A balanced run of the slots for each program: a function of count alone."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    zero_tickets(ticket_ptr, tickets, TICKETS)
    count = tl.minimum(tl.load(count_ptr), capacity)
    xs = load_tokens(x_ptr, x_ptr, 0.0, False, TOKENS, HIDDEN, FORMAT, UNITS, V)
    up_of_slots(
        xs, up_ptr, up_scales_ptr, up_distance, index_ptr, value_ptr, h_ptr, tally_ptr, program * count // programs,
        (program + 1) * count // programs, capacity, TOKENS, ON_UP, BLOCK_N, STAGES, HIDDEN, FORMAT, UNITS, V, STEP,
        SCALES,
    )  # fmt: skip


def launch(
    x: Tensor, up: Tensor, down_rows: Tensor, index: Tensor, count: Tensor, value: Tensor, on_up: bool, tally: Tensor
) -> Tensor:
    tokens, capacity = value.shape
    if capacity == 0:
        return torch.zeros_like(x)
    weights = matrices(x.shape[1], up)
    small = by_rows(weights, tokens)
    weights = weights.words if small else weights
    tickets = new_tickets(x, down_rows)
    h = torch.empty_like(value)
    pointers = (x, *weights.pointers[0], index, value, count, h, tally, tickets)
    shared = {"ON_UP": on_up, "TICKETS": triton.next_power_of_2(tickets.numel()), **weights.row}
    if small:
        block_n, warps, stages = row_tile(weights)
        up_kernel[(persistent(gpu_of(x.device), weights, tokens, capacity, block_n),)](
            *pointers, capacity, tickets.numel(), TOKENS=tokens, BLOCK_N=block_n, STAGES=stages, num_warps=warps,
            **shared,
        )  # fmt: skip
    else:
        block_n, warps, stages, block_e = TILE[weights.format]
        tile_up_kernel[(triton.cdiv(capacity, block_n),)](
            *pointers, tokens, capacity, tickets.numel(), BLOCK_N=block_n, TERMS=pieces(x.dtype, weights.dtype),
            BLOCK_E=block_e, STAGES=stages, num_warps=warps, **shared,
        )  # fmt: skip
    return down(x, down_rows, (index, count, h), tickets)
