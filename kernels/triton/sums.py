"""Partial sums of several programs, added by the last of them to finish, in an order of their own."""

from __future__ import annotations

import triton
import triton.language as tl

LIST, SEGMENTED, EVERY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # which neurons products belong to


@triton.jit
def is_last(ticket_ptr, programs):
    """True in the program that finishes last. Nobody waits: the others have gone.

    The barrier orders this program's stores before its ticket; acq_rel orders them before the last one's loads.
    """
    tl.debug_barrier()
    return tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1


@triton.jit
def zero_tickets(ticket_ptr, tickets, TICKETS: tl.constexpr):
    """By the first program of the launch before the one that takes them."""
    if tl.program_id(0) == 0:
        tl.store(ticket_ptr + tl.arange(0, TICKETS), 0, mask=tl.arange(0, TICKETS) < tickets)


@triton.jit
def store_sum(y_ptr, residual_ptr, at, live, y, scale, RESIDUAL: tl.constexpr):
    """y, or residual + scale * y."""
    if RESIDUAL:
        y = tl.load(residual_ptr + at, mask=live, other=0.0) + scale * y
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def add_partials(
    partial_ptr, bias_ptr, residual_ptr, y_ptr, scale, first, splits, tokens,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """y of these columns: the partial sums of all splits, added in ascending order, the bias and the residual."""
    column = first + tl.arange(0, WIDTH)
    live = column < HIDDEN
    for token in range(tokens):
        total = tl.zeros([AT_ONCE, WIDTH], dtype=tl.float32)
        for start in range(0, splits, AT_ONCE):
            split = start + tl.arange(0, AT_ONCE)
            at = (split * tokens + token)[:, None] * HIDDEN + column[None, :]
            # .cg: other programs wrote it, so the L1 may be stale
            mask = (split < splits)[:, None] & live[None, :]
            total += tl.load(partial_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
        y = tl.sum(total, axis=0)
        if BIAS:
            y += tl.load(bias_ptr + column, mask=live, other=0.0)
        store_sum(y_ptr, residual_ptr, token * HIDDEN + column, live, y, scale, RESIDUAL)
