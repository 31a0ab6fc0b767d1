"""The first launch of a decode step: rows of the embedding by ids on the device; it also zeroes the step's tickets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import matrices
from .rows import decode, load_rows, planes_of, shrunk


@triton.jit
def embed_kernel(
    id_ptr, codes_ptr, scales_ptr, distance, y_ptr, ticket_ptr, factor, tickets,
    TICKETS: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr,
    STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """One token."""
    token = tl.program_id(0) + tl.arange(0, 1)
    row = tl.load(id_ptr + token)
    codes, scale, magic = load_rows(
        codes_ptr, scales_ptr, distance, row, row >= 0, HIDDEN, FORMAT, UNITS, V, STEP, SCALES
    )
    unit, lane = tl.arange(0, UNITS)[:, None, None], tl.arange(0, V)[None, None, :]
    for plane in tl.static_range(planes_of(FORMAT)):
        if FORMAT == "int8":
            column = (unit * V + lane) * 4 + plane
        else:
            column = (unit * planes_of(FORMAT) + plane) * V + lane
        value = decode(codes, magic, plane, FORMAT) * shrunk(plane, FORMAT)
        if FORMAT != "float":
            value = value * scale[:, :, None]
        tl.store(y_ptr + token[None, :, None] * HIDDEN + column, value * factor, mask=column < HIDDEN)
    if tl.program_id(0) == 0:
        for first in range(0, tickets, TICKETS):
            ticket = first + tl.arange(0, TICKETS)
            tl.store(ticket_ptr + ticket, 0, mask=ticket < tickets)


def launch(ids: Tensor, table: Tensor, columns: int, factor: float, tickets: Tensor) -> Tensor:
    """Embeddings of ids [tokens] int64 times a factor, [tokens, columns] float32; zeroes tickets [n] int32."""
    weights = matrices(columns, table).words
    y = torch.empty(len(ids), columns, dtype=torch.float32, device=ids.device)
    embed_kernel[(len(ids),)](
        ids, *weights.pointers[0], y, tickets, factor, tickets.numel(), TICKETS=1024, num_warps=4, **weights.row
    )
    return y
