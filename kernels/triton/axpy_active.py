"""`kernels.axpy_active`: what is not zero as segments, then down rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import NONZERO_OWN
from .down import down, new_tickets
from .segments import Segments, write_segment
from .sums import zero_tickets
from .up import add_to_tally


@triton.jit
def nonzero_kernel(
    h_ptr, index_ptr, value_ptr, count_ptr, tally_ptr, ticket_ptr, neurons, tickets,
    TOKENS: tl.constexpr, TICKETS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """OWN neurons of every token: those that some token has a factor for."""
    zero_tickets(ticket_ptr, tickets, TICKETS)
    first = tl.program_id(0) * OWN
    neuron = first + tl.arange(0, OWN)
    nonzero = tl.zeros([OWN], dtype=tl.int32)
    for token in tl.static_range(TOKENS):
        h = tl.load(h_ptr + token * neurons + neuron, mask=neuron < neurons, other=0.0).to(tl.float32)
        nonzero += (h != 0.0).to(tl.int32)
    active = nonzero > 0
    place, count = write_segment(active, neuron, first, index_ptr, count_ptr)
    for token in tl.static_range(TOKENS):
        h = tl.load(h_ptr + token * neurons + neuron, mask=active, other=0.0).to(tl.float32)
        tl.store(value_ptr + token * neurons + place, h, mask=active)
    add_to_tally(tally_ptr, count, count, tl.sum(nonzero, axis=0))


def launch(h: Tensor, down_rows: Tensor, hidden: int, bias: Tensor | None, tally: Tensor) -> Tensor:
    tokens, neurons = h.shape
    like = h.new_empty(tokens, hidden)
    tickets = new_tickets(like, down_rows)
    programs = triton.cdiv(neurons, NONZERO_OWN)
    index, count = h.new_empty(neurons, dtype=torch.int32), h.new_empty(programs, dtype=torch.int32)
    value = h.new_empty(tokens, neurons, dtype=torch.float32)
    nonzero_kernel[(programs,)](
        h, index, value, count, tally, tickets, neurons, tickets.numel(), TOKENS=tokens,
        TICKETS=triton.next_power_of_2(tickets.numel()), OWN=NONZERO_OWN, num_warps=2,
    )  # fmt: skip
    return down(like, down_rows, Segments(index, value, count, NONZERO_OWN), tickets, bias=bias)
