"""How GGUF stores the numbers of a tensor, and what they are as floats.

Quantised rows are cut into blocks with an fp16 scale d each; a value is a small whole number times d, in float32:

    Q8_0: d * code, code -128..127, blocks of 32                        8.5 bits a weight
    Q4_0: d * (code - 8), code 0..15, blocks of 32                      4.5 bits a weight
    Q6_K: d * scale * (code - 32), blocks of 256 with 16 int8 scales    6.5625 bits a weight
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A type of tensor.

    Args:
        name: as GGUF calls it.
        block: how many values lie together.
        nbytes: of a block.
        dtype: of the values as read; float32 for blocks.
        unpack: values [.., block] of blocks [.., nbytes] uint8; None where the bytes are the values.
        format: the weight format that keeps them best, "auto" where `load_weights` knows; None for what is no weight.
    """

    name: str
    block: int
    nbytes: int
    dtype: torch.dtype
    unpack: Callable[[Tensor], Tensor] | None = None
    format: str | None = None


def _scale(blocks: Tensor, start: int) -> Tensor:
    """float32 [.., 1]; the two bytes may lie at an odd address, which a view does not allow."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).float()


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[..., 2:].contiguous().view(torch.int8).float() * _scale(blocks, 0)


def _q4_0(blocks: Tensor) -> Tensor:
    codes = blocks[..., 2:]
    halves = torch.cat((codes & 15, codes >> 4), dim=-1)  # low bits are the first 16 values
    return (halves.float() - 8) * _scale(blocks, 0)


def _q6_k(blocks: Tensor) -> Tensor:
    """Two halves of 128 values: 64 bytes of low bits and 32 of high bits each."""
    low = blocks[..., :128].unflatten(-1, (2, 1, 64))
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32))
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(4, 1)
    nibbles = torch.cat((low & 15, low >> 4), dim=-2).unflatten(-1, (2, 32)).flatten(-3, -2)  # [.., 2, 4, 32]
    codes = (nibbles | ((high >> shift & 3) << 4)).flatten(-3)
    scales = blocks[..., 192:208].contiguous().view(torch.int8).float() * _scale(blocks, 208)
    return ((codes.float() - 32).unflatten(-1, (16, 16)) * scales[..., None]).flatten(-2)


KINDS = {
    0: Kind("F32", 1, 4, torch.float32, format="auto"),
    1: Kind("F16", 1, 2, torch.float16, format="fp16"),
    2: Kind("Q4_0", 32, 18, torch.float32, _q4_0, "int4"),
    8: Kind("Q8_0", 32, 34, torch.float32, _q8_0, "int8"),
    14: Kind("Q6_K", 256, 210, torch.float32, _q6_k, "int8"),
    26: Kind("I32", 1, 4, torch.int32),
    30: Kind("BF16", 1, 2, torch.bfloat16, format="bf16"),
}
WEIGHTS = [kind.name for kind in KINDS.values() if kind.format]
# Types that prosparse does not read, so that a message can name what a file holds
OTHERS = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class Blocks:
    """A matrix whose values are made of its stored bytes when a part of it is asked for.

    Args:
        stored: [rows, bytes of a row] uint8.
        kind: one with blocks.
        order: row i of the matrix is stored row order[i]; None where they are in order.
        transposed: the matrix is the stored one with rows and columns exchanged.
    """

    dtype = torch.float32

    def __init__(self, stored: Tensor, kind: Kind, order: Tensor | None = None, transposed: bool = False) -> None:
        assert kind.unpack is not None
        self._stored, self._kind, self._unpack = stored, kind, kind.unpack
        self._order, self._transposed = order, transposed

    def __getitem__(self, part: slice | Tensor | tuple[slice, slice]) -> Tensor:
        """float32 values of some rows, or of all rows and some columns; columns are cut where stored blocks are."""
        rows, columns = part if isinstance(part, tuple) else (part, slice(None))
        if self._transposed:
            assert isinstance(rows, slice), "rows that are stored as columns are neighbours"
            return self._values(columns, rows).t()
        return self._values(rows, columns)

    def _values(self, rows: slice | Tensor, columns: slice) -> Tensor:
        block, nbytes = self._kind.block, self._kind.nbytes
        picked = self._stored[rows] if self._order is None else self._stored[self._order[rows]]
        width = self._stored.shape[1] // nbytes * block
        start, stop, _ = columns.indices(width)
        assert start % block == 0 and stop % block == 0, "columns are cut where blocks are"
        cut = picked[:, start // block * nbytes : stop // block * nbytes]
        return self._unpack(cut.unflatten(1, (-1, nbytes))).flatten(1)
