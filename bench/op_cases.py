"""What the ops outside the FFN are timed with: one function per group of ops that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.nn.functional import scaled_dot_product_attention

from prosparse.config import ModelConfig
from prosparse.kernels.attend import attend, attend_reference
from prosparse.kernels.linear import linear, linear_reference
from prosparse.kernels.rms_norm import rms_norm, rms_norm_reference
from prosparse.kernels.rotary_store import rotary_store, rotary_store_reference
from prosparse.kernels.weight import FLOATS, FORMAT_OF_DTYPE, bytes_per_row
from prosparse.weights.synthetic import MatrixMaker

from .check import FIXED_POINT, require_close
from .cold import copies_of, distance, in_turn

ROUNDING = 1e-2  # of a result in bf16 against fp32
PYTORCH = "PyTorch's own op in the same run"


def nothing(calls: int) -> None:
    """An op without activation sparsity."""


@dataclass(frozen=True, eq=False)
class Op:
    """One op at one size.

    Args:
        subject: its name.
        mode: "dense" or "exact" as far as it reads weights like that, "pytorch" for PyTorch's own.
        weights: format of what it reads.
        call: for the clock.
        check: raises MachineError where it is wrong.
        distance: bytes read between two calls with the same operands.
        read: bytes that a call has to read, given how many there were.
        part: which matrix of a model.
        layers: how many layers a call computes.
        sparsity: activation sparsity, given how many calls there were.
        against: name of the op in the group that it is compared with, and how that is called in the row.
    """

    subject: str
    mode: str
    weights: str
    call: Callable[[int], object]
    check: Callable[[], None]
    distance: int
    read: Callable[[int], float]
    part: str | None = None
    layers: int = 1
    sparsity: Callable[[int], float | None] = nothing
    against: tuple[str, str] = ("pytorch", PYTORCH)


Group = Callable[[ModelConfig, str, float, int], dict[str, Op]]  # config, format, activation sparsity, context


def projection(part: str) -> Group:
    """`linear` with one of the dense matrices of a model, beside PyTorch's where that has the format."""

    def group(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
        attended = config.heads * config.head_dim
        rows, columns = {
            "qkv": (attended + 2 * config.kv_heads * config.head_dim, config.hidden),
            "o": (config.hidden, attended),
            "gate": (config.neurons, config.hidden),
            "lm_head": (config.vocab, config.hidden),
        }[part]
        maker, nbytes = MatrixMaker(fmt), rows * bytes_per_row(fmt, columns)
        copies = copies_of(nbytes)
        maker.expect(copies * nbytes)
        weights = [maker.matrix(rows, columns, columns**-0.5) for _ in range(copies)]
        x = normal(1, columns)
        expected = linear_reference(x, weights[0].codes)

        def check() -> None:
            slack = FIXED_POINT if weights[0].is_packed else 0.0
            require_close(f"linear {part}", linear(x, weights[0]), expected, columns, slack)

        ours = Op(
            "linear",
            "dense",
            fmt,
            call=in_turn(weights, lambda w, _: linear(x, w)),
            check=check,
            distance=distance(copies, nbytes),
            read=lambda calls: nbytes,
            part=part,
        )
        if fmt not in FLOATS:
            return {"ours": ours}
        own = x.to(FLOATS[fmt])

        def check_theirs() -> None:
            require_close("torch linear", torch_linear(own, weights[0].codes).float(), expected, columns, ROUNDING)

        call = in_turn(weights, lambda w, _: torch_linear(own, w.codes), 0.5)
        return {"ours": ours, "pytorch": replace(ours, mode="pytorch", call=call, check=check_theirs)}

    return group


def attention(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`attend` for one token at the end of a full cache, beside PyTorch's attention with grouped query heads."""
    dtype, kv, head_dim = cache_dtype(fmt), config.kv_heads, config.head_dim
    nbytes = 2 * kv * context * head_dim * dtype.itemsize
    copies = copies_of(nbytes)
    caches = [normal(2, kv, context, head_dim).to(dtype) for _ in range(copies)]
    q = normal(1, config.heads, head_dim)
    expected = attend_reference(q, *caches[0], context - 1, 0)

    def pytorch(cache: Tensor, _: int) -> Tensor:
        grouped = q.view(1, kv, config.heads // kv, head_dim).to(dtype)
        return scaled_dot_product_attention(grouped, cache[:1], cache[1:]).float()

    def ours(cache: Tensor, _: int) -> Tensor:
        return attend(q, cache[0], cache[1], context - 1)

    def check() -> None:
        require_close("attend", ours(caches[0], 0), expected, context + head_dim)

    def check_theirs() -> None:
        require_close("torch attention", pytorch(caches[0], 0).view(1, -1), expected, context + head_dim, ROUNDING)

    op = Op(
        "attend",
        "dense",
        FORMAT_OF_DTYPE[dtype],
        call=in_turn(caches, ours),
        check=check,
        distance=distance(copies, nbytes),
        read=lambda calls: nbytes,
    )
    return {"ours": op, "pytorch": replace(op, mode="pytorch", call=in_turn(caches, pytorch, 0.5), check=check_theirs)}


def norm(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`rms_norm` of one token, beside PyTorch's."""
    hidden, eps = config.hidden, config.norm_eps
    nbytes = 2 * hidden * 4
    copies = copies_of(nbytes)
    operands = list(normal(copies, 2, 1, hidden))
    expected = rms_norm_reference(operands[0][0], operands[0][1, 0], eps)

    def ours(pair: Tensor, _: int) -> Tensor:
        return rms_norm(pair[0], pair[1, 0], eps)

    def pytorch(pair: Tensor, _: int) -> Tensor:
        return torch_rms_norm(pair[0], (hidden,), pair[1, 0], eps)

    def check(call: Callable[[Tensor, int], Tensor]) -> None:
        require_close("rms_norm", call(operands[0], 0), expected, hidden)

    op = Op(
        "rms_norm",
        "dense",
        "fp32",
        call=in_turn(operands, ours),
        check=partial(check, ours),
        distance=distance(copies, nbytes),
        read=lambda calls: nbytes,
    )
    theirs = in_turn(operands, pytorch, 0.5)
    return {"ours": op, "pytorch": replace(op, mode="pytorch", call=theirs, check=partial(check, pytorch))}


def rotary(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`rotary_store` of one token at the end of a cache. PyTorch has no such op."""
    kv, head_dim, start = config.kv_heads, config.head_dim, context - 1
    dtype, width = cache_dtype(fmt), (config.heads + 2 * kv) * head_dim
    nbytes = width * 4 + 2 * kv * head_dim * dtype.itemsize  # read, and what is written into the cache
    copies = copies_of(nbytes)
    operands = [(normal(1, width), torch.zeros(2, kv, context, head_dim, dtype=dtype)) for _ in range(copies)]
    angle = normal(1, head_dim // 2)
    cos, sin = angle.cos(), angle.sin()

    def call(pair: tuple[Tensor, Tensor], _: int) -> Tensor:
        return rotary_store(pair[0], cos, sin, pair[1][0], pair[1][1], start)

    def check() -> None:
        qkv, cache = operands[0]
        other = torch.zeros_like(cache)
        expected = rotary_store_reference(qkv, cos, sin, other[0], other[1], start)
        require_close("rotary_store", call(operands[0], 0), expected, head_dim)
        require_close("rotary_store, cache", cache.float(), other.float(), head_dim, ROUNDING)

    op = Op(
        "rotary_store",
        "dense",
        FORMAT_OF_DTYPE[dtype],
        call=in_turn(operands, call),
        check=check,
        distance=distance(copies, nbytes),
        read=lambda calls: nbytes,
    )
    return {"ours": op}


def cache_dtype(fmt: str) -> torch.dtype:
    """Of the cache that goes with a weight format."""
    return torch.float32 if fmt == "fp32" else torch.bfloat16


def normal(*shape: int) -> Tensor:
    """Normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
