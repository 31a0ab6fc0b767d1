"""Product of a few tokens with a dense weight: attention projections, lm_head, the dense parts of an FFN.

    y[t] = weight x[t]

A decode step is bound by memory: the op reads rows * columns weights once for all its tokens. More than `MAX_ROWS`
tokens are a GEMM and go to PyTorch's own.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from .checks import MAX_ROWS, check_input, check_shape
from .library import register
from .quant import as_matrix
from .weight import Weight

MOST_KEPT = 2**26  # weights, 128 MiB: matrices of layers are kept, tables of a vocabulary are not
_unpacked = threading.local()


def linear(x: Tensor, weight: Weight) -> Tensor:
    """Multiply every token by the weight.

    Args:
        x: [tokens, columns] fp32 | fp16 | bf16.
        weight: [rows, columns], any format.

    Returns:
        [tokens, rows], dtype of x. Up to `MAX_ROWS` tokens are accumulated in fp32 over x as given, and each token's
        result does not depend on the others. Above that it is PyTorch's GEMM in the weight's dtype (bf16 where it is
        packed), which rounds x, packed weights and the result to that dtype first.

    Raises:
        ValueError: sizes disagree, x is not contiguous, or a dtype is not supported.
    """
    check_shape("linear", x=(x, ("tokens", "columns")), weight=(weight, ("rows", "columns")))
    if x.shape[0] > MAX_ROWS:
        values = gemm_values(weight)
        return torch.nn.functional.linear(x.to(values.dtype), values).to(x.dtype)
    check_input("linear", x)
    return torch.ops.prosparse.linear(x, weight.codes)


def gemm_transposed(x: Tensor, weight: Weight) -> Tensor:
    """x @ weight for many tokens: the down projection of a prefill, whose rows are neurons.

    Args:
        x: [tokens, rows] of any float dtype.
        weight: [rows, columns].

    Returns:
        [tokens, columns], dtype of x; x and the result are rounded to the weight's dtype on the way.

    Raises:
        ValueError: sizes disagree.
    """
    check_shape("gemm_transposed", x=(x, ("tokens", "rows")), weight=(weight, ("rows", "columns")))
    values = gemm_values(weight)
    return (x.to(values.dtype) @ values).to(x.dtype)


def gemm_values(weight: Weight) -> Tensor:
    """[rows, columns] in the dtype that a GEMM of this weight runs in: its own, bf16 for a packed one.

    A packed one is unpacked to the same place every time, so that it stays in the cache: valid until the next call of
    this thread.
    """
    if weight.packed_columns is None:
        return weight.codes
    rows, columns = weight.shape
    if rows * columns > MOST_KEPT:
        return weight.values(torch.bfloat16)
    held: Tensor | None = getattr(_unpacked, "values", None)
    if held is None or held.numel() < rows * columns or held.device != weight.codes.device:
        with torch.inference_mode(False):  # one made inside may not be written outside
            held = _unpacked.values = torch.empty(rows * columns, dtype=torch.bfloat16, device=weight.codes.device)
    values = held[: rows * columns].view(rows, columns)
    torch.ops.prosparse.dequantize(weight.codes, values)
    return values


def working_dtype(weight: Weight, tokens: int) -> torch.dtype:
    """What tokens are best given to `linear` in: the dtype of the GEMM that takes so many, fp32 for a decode step."""
    if tokens <= MAX_ROWS:
        return torch.float32
    return torch.bfloat16 if weight.is_packed else weight.codes.dtype


def linear_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The meaning of the op, in plain PyTorch."""
    return torch.nn.functional.linear(x.float(), as_matrix(weight, x.shape[1])).to(x.dtype)


def _fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


register("linear(Tensor x, Tensor weight) -> Tensor", linear_reference, _fake)
