"""`kernels.linear`: whole rows, each summed by one program."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import rms_norm
from .configs import TILE, by_rows, persistent, pieces, row_tile
from .gpu import gpu_of
from .layout import Norm, Residual, matrices
from .overlap import ask_for_rows, wait_for_previous
from .rows import dots, load_rows, load_tokens
from .sums import store_sum
from .tile_kernels import tile_linear_kernel


@triton.jit
def linear_kernel(
    x_ptr, norm_ptr, codes_ptr, scales_ptr, distance, residual_ptr, y_ptr, eps, alpha, rows,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, OVERLAP: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, UNITS: tl.constexpr, V: tl.constexpr,
    STEP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    ask_for_rows(
        codes_ptr, distance, tl.program_id(0) * BLOCK_N, tl.num_programs(0) * BLOCK_N, rows, OVERLAP, STAGES, BLOCK_N,
        HIDDEN, FORMAT, UNITS, V, STEP, SCALES,
    )  # fmt: skip
    wait_for_previous(OVERLAP)
    xs = load_tokens(x_ptr, norm_ptr, eps, NORM, TOKENS, HIDDEN, FORMAT, UNITS, V)
    for start in tl.range(tl.program_id(0) * BLOCK_N, rows, tl.num_programs(0) * BLOCK_N, num_stages=STAGES):
        row = start + tl.arange(0, BLOCK_N)
        live = row < rows
        read = load_rows(codes_ptr, scales_ptr, distance, row, live, HIDDEN, FORMAT, UNITS, V, STEP, SCALES)
        for token in tl.static_range(TOKENS):
            y = dots(read, xs[token], FORMAT)
            store_sum(y_ptr, residual_ptr, token * rows + row, live, y, alpha, RESIDUAL)


def launch(
    x: Tensor, weight: Tensor, norm: Norm | None = None, residual: Residual | None = None, overlap: bool = False
) -> Tensor:
    """As the op; or of x normed, or added to a residual: residual + scale * (weight norm(x)). See `overlap`."""
    tokens, columns = x.shape
    weights = matrices(columns, weight)
    y = x.new_empty(tokens, weights.rows)
    behind, alpha = residual or (y, 1.0)
    if by_rows(weights, tokens):
        weights = weights.words
        front, eps = norm or (x, 0.0)
        block_n, warps, stages = row_tile(weights)
        linear_kernel[(persistent(gpu_of(x.device), weights, tokens, weights.rows, block_n),)](
            x, front, *weights.pointers[0], behind, y, eps, alpha, weights.rows, NORM=norm is not None,
            RESIDUAL=residual is not None, OVERLAP=overlap, TOKENS=tokens, BLOCK_N=block_n, STAGES=stages,
            num_warps=warps, launch_pdl=overlap, **weights.row,
        )  # fmt: skip
    else:
        x = rms_norm.launch(x, *norm) if norm else x
        block_n, warps, stages, block_e = TILE[weights.format]
        tile_linear_kernel[(triton.cdiv(weights.rows, block_n),)](
            x, *weights.pointers[0], behind, y, alpha, tokens, weights.rows, RESIDUAL=residual is not None,
            BLOCK_N=block_n, TERMS=pieces(x.dtype, weights.dtype), BLOCK_E=block_e, STAGES=stages, num_warps=warps,
            **weights.row,
        )  # fmt: skip
    return y
