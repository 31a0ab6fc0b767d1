"""Step 2 of the operators published with ProSparse, by its meaning: up rows where a dense gate is open, for one token.

    h[j] = act(g[j]) * (up[j] . x), and 0 where the gate is closed

For comparisons with their published times alone, which start from g, [neurons] in memory, and end with h in its shape.
Step 3, down rows of what is not zero, is `axpy_active`. The engine's own FFN writes neither vector.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activate import if_open
from .configs import persistent, row_tile
from .gpu import gpu_of
from .layout import matrices
from .rows import dots, load_rows, load_tokens
from .segments import write_segment


@triton.jit
def ffn_23_kernel(
    g_ptr, x_ptr, up_ptr, up_scales_ptr, up_distance, index_ptr, count_ptr, h_ptr, threshold, neurons, own,
    KIND: tl.constexpr, OWN: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, HIDDEN: tl.constexpr,
    FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """OWN neurons: the open ones as a list of this program's own, then their rows."""
    first = tl.program_id(0) * own
    neuron = first + tl.arange(0, OWN)
    live = neuron < tl.minimum(first + own, neurons)
    g = if_open(tl.load(g_ptr + neuron, mask=live, other=0.0).to(tl.float32), threshold, KIND)
    active = live & (g != 0.0)
    tl.store(h_ptr + neuron, tl.zeros_like(g).to(h_ptr.dtype.element_ty), mask=live & (g == 0.0))
    _, count = write_segment(active, neuron, first, index_ptr, count_ptr)
    xs = load_tokens(x_ptr, x_ptr, 0.0, False, 1, HIDDEN, FORMAT, UNITS, V)
    tl.debug_barrier()  # the threads of this program read what others of them wrote
    for start in tl.range(first, first + count, BLOCK_N, num_stages=STAGES):
        slot = start + tl.arange(0, BLOCK_N)
        listed = slot < first + count
        row = tl.load(index_ptr + slot, mask=listed, other=0)
        read = load_rows(up_ptr, up_scales_ptr, up_distance, row, listed, HIDDEN, FORMAT, UNITS, V, STEP, SCALES)
        value = tl.load(g_ptr + row, mask=listed, other=0.0).to(tl.float32)
        h = value * dots(read, xs[0], FORMAT)
        tl.store(h_ptr + row, h.to(h_ptr.dtype.element_ty), mask=listed)


def launch(g: Tensor, x: Tensor, up: Tensor, kind: int, threshold: float) -> Tensor:
    """
    Args:
        g: pre-activations of one token, [neurons] fp32 | fp16 | bf16.
        x: [1, hidden] fp32 | fp16 | bf16.
        up: [neurons, hidden], any format.
        kind, threshold: relu or fatrelu.

    Returns:
        h, [neurons], dtype of g.
    """
    weights = matrices(x.shape[1], up).words
    neurons = weights.rows
    block_n, warps, stages = row_tile(weights)
    own = triton.cdiv(neurons, persistent(gpu_of(x.device), weights, 1, neurons, block_n))
    programs = triton.cdiv(neurons, own)
    index, count = g.new_empty(neurons, dtype=torch.int32), g.new_empty(programs, dtype=torch.int32)
    h = torch.empty_like(g)
    ffn_23_kernel[(programs,)](
        g, x, *weights.pointers[0], index, count, h, threshold, neurons, own, KIND=kind,
        OWN=triton.next_power_of_2(own), BLOCK_N=block_n, STAGES=stages, num_warps=warps, **weights.row,
    )  # fmt: skip
    return h
