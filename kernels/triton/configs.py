"""Tiles, warps and pipeline depth of each kernel. A table to be corrected by measurement; there is no autotuning.

The rule behind the numbers: a tile of 8 or 16 KiB per stage for kernels that read whole rows, two tiles in flight
beside the one in use. `tools/compile_triton.py` prints for every target what that keeps in flight per multiprocessor,
against what hides the latency of its memory. Nothing here has been timed on a GPU yet.
"""

from __future__ import annotations

import torch
import triton

from .gpu import Gpu
from .layout import UNIT_BYTES, Matrices

ROW_TOKENS = {"float": 4, "int8": 1, "int4": 1}  # up to so many tokens stay in registers; more go to the tensor cores
ROW_BYTES = {"float": 16384, "int8": 8192, "int4": 16384}  # of a tile of whole rows
MAX_ROW_TILE = {"float": 8, "int8": 4, "int4": 4}  # rows of it; with more of int8 or int4 registers spill
SHORT = 64  # units: rows of fewer, as predictors of a low rank have, come as many at once as fill so many
SIGN_BYTES = 8192  # of a tile of packed signs
PIECES = 32  # units of a row that a program of `down` owns: 512 bytes, one load of a warp
DOWN = {"float": (8, 4, 3), "int8": (8, 4, 3), "int4": (4, 4, 4)}  # BLOCK_N, warps, STAGES
# For the tensor cores: BLOCK_N, warps, STAGES, and elements of a row, which for int8 lie in one group.
TILE = {"float": (32, 4, 6, 64), "int8": (32, 4, 6, 64), "int4": (32, 4, 5, 16)}
TILE_DOWN = {"float": (16, 8, 3, 128), "int8": (16, 4, 8, 64), "int4": (16, 8, 8, 32)}
NONZERO_OWN = 64  # activations of a token that one program of `axpy_active` looks through
SPAN = 2048  # logits of a program of `argmax`
AT_ONCE = 8  # partial sums of `down` added together
ATTEND = (32, 4, 3)  # positions of a tile, warps, STAGES
OVERLAP = False  # of the launches of a decode step: see `overlap`; on once a GPU has shown that it is right and faster
MAX_SPLITS = 32  # of the context: what joins them is one program per head
IN_FLIGHT = 64 << 10  # bytes of a loop's tiles at most: of the 99 KiB of shared memory that a program gets on every GPU


def by_rows(weights: Matrices, tokens: int) -> bool:
    """Whether whole rows meet tokens in registers (`rows`), or tiles do on the tensor cores (`tiles`)."""
    return tokens <= ROW_TOKENS[weights.format]


def pieces(tokens: torch.dtype, weights: torch.dtype) -> int:
    """TERMS of `tiles`: pieces of 11 bits that an fp32, fp16 or bf16 operand is cut into; 0 where weights are fp32."""
    if weights == torch.float32:
        return 0
    return 3 if tokens == torch.float32 else 1


def row_tile(weights: Matrices) -> tuple[int, int, int]:
    """(BLOCK_N, warps, STAGES) of kernels that hold x in registers and read whole rows."""
    units = weights.row["UNITS"]
    most = MAX_ROW_TILE[weights.format] * max(1, SHORT // units)
    block_n = max(1, min(most, ROW_BYTES[weights.format] // (units * UNIT_BYTES)))
    return block_n, _row_warps(weights), 3


def _row_warps(weights: Matrices) -> int:
    # A row ends in as many shuffles whatever a thread had of it: four warps make them fewer for each packed weight.
    few = weights.format != "float" and weights.row["UNITS"] * weights.unit_columns <= 4096  # longer: registers spill
    return 4 if few else 8


def fitting_stages(stages: int, tile_bytes: int) -> int:
    """So many, or fewer where tiles are so large that those in flight, all but the one in use, would not fit."""
    return max(2, min(stages, 1 + IN_FLIGHT // tile_bytes))


def sign_tile(signs: Matrices) -> tuple[int, int, int]:
    """(BLOCK_N, warps, STAGES) of `sign_select`: rows are short, and a tile is 8 KiB of them."""
    return max(1, min(32, SIGN_BYTES // (signs.row["UNITS"] * UNIT_BYTES))), 4, 3


def persistent(gpu: Gpu, weights: Matrices, tokens: int, rows: int, block_n: int) -> int:
    """Programs that each walk a share of the rows: as many as run at once, no more than there are tiles."""
    per_sm = 4 if _row_warps(weights) == 4 else 2 if tokens <= 2 else 1
    return min(per_sm * gpu.sms, triton.cdiv(rows, block_n))


def down_splits(gpu: Gpu, column_blocks: int) -> int:
    """Programs that share the slots of one block of columns: four per multiprocessor in all."""
    return max(1, 4 * gpu.sms // column_blocks)


def attend_stages(stages: int, head_dim: int) -> int:
    """So many, or fewer where heads are so long that tiles would not fit beside what they become as fp32."""
    return stages if head_dim <= 128 else min(stages, 2)


def attend_splits(gpu: Gpu, blocks: int, room: int) -> int:
    """Runs that the context is cut into: two programs per multiprocessor, none shorter than a tile."""
    return max(1, min(MAX_SPLITS, 2 * gpu.sms // blocks, triton.cdiv(room, ATTEND[0])))
