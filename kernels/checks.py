"""Argument checks shared by every op. Each failure names the op, the argument, what it got, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_ROWS = 16  # tokens of one decode step; above it a dense GEMM moves fewer bytes per token than skipping saves


class Shaped(Protocol):
    """A tensor or a Weight, whose shape is that of its values."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_shape(op: str, **dims: tuple[Shaped, tuple[str, ...]]) -> dict[str, int]:
    """Bind names to sizes and insist that a name has one size. Returns {name: size}.

    check_shape("linear", x=(x, ("tokens", "columns")), weight=(weight, ("rows", "columns")))
    """
    size: dict[str, int] = {}
    owner: dict[str, str] = {}
    for argument, (tensor, names) in dims.items():
        if len(tensor.shape) != len(names):
            raise ValueError(f"{op}: {argument} must be [{', '.join(names)}], got shape {tuple(tensor.shape)}")
        for name, n in zip(names, tensor.shape, strict=True):
            if size.setdefault(name, n) != n:
                raise ValueError(
                    f"{op}: {name} is {size[name]} in {owner[name]} but {n} in {argument} (shape {tuple(tensor.shape)})"
                )
            owner.setdefault(name, argument)
    return size


def check_alike(op: str, **tensors: tuple[Tensor, Sequence[torch.dtype]]) -> None:
    """Tensors of values must have one shape, be contiguous, and each have a dtype of its own list."""
    (first, (like, _)), *_ = tensors.items()
    for name, (tensor, dtypes) in tensors.items():
        if tensor.shape != like.shape:
            raise ValueError(
                f"{op}: {first} and {name} must have one shape, got {tuple(like.shape)} and {tuple(tensor.shape)}"
            )
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(f"{op}: {name} must be {expected}, got {tensor.dtype}; convert it with .to()")
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}; call .contiguous()")


def check_input(op: str, x: Tensor) -> None:
    """x must be [tokens, ...] with 1 to MAX_ROWS contiguous rows of a float dtype."""
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{op}: x must be one of {FLOAT_DTYPES}, got {x.dtype}; convert it with .float()")
    if not 1 <= x.shape[0] <= MAX_ROWS:
        raise ValueError(
            f"{op}: x has {x.shape[0]} tokens, this op takes 1 to {MAX_ROWS}; larger steps go through a dense GEMM"
        )
    if not x.is_contiguous():
        raise ValueError(f"{op}: x must be contiguous, got strides {x.stride()}; call .contiguous()")
