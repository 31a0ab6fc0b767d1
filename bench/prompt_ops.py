"""The ops between the GEMMs of a prompt for the "ops" subject, beside the passes of PyTorch that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import rms_norm as torch_rms_norm

from prosparse.config import ModelConfig
from prosparse.kernels.activation import gate_value, up_value
from prosparse.kernels.add_scaled import add_scaled, add_scaled_reference
from prosparse.kernels.glu_active import weigh
from prosparse.kernels.glu_values import glu_values
from prosparse.kernels.rms_norm import rms_norm, rms_norm_reference
from prosparse.kernels.weight import FORMAT_OF_DTYPE

from .check import require_close
from .cold import copies_of, distance, in_turn
from .op_cases import ROUNDING, Op, normal

TOKENS = 64
DTYPE = torch.bfloat16  # of the GEMMs
Pair = tuple[Tensor, Tensor]
Call = Callable[[Pair], Tensor]


def products(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`glu_values` of 64 tokens."""
    act = config.activation

    def ours(pair: Pair) -> Tensor:
        return glu_values(*pair, act)

    def pytorch(pair: Pair) -> Tensor:
        gate, up = pair
        return weigh(gate_value(gate, act.code, act.threshold), up_value(up, act.on_up))

    def expected(pair: Pair) -> Tensor:
        return pytorch((pair[0].float(), pair[1].float()))

    size = TOKENS * config.neurons
    read = normal(TOKENS, config.neurons), normal(TOKENS, config.neurons)
    return _beside("glu_values", (read[0].to(DTYPE), read[1].to(DTYPE)), ours, pytorch, expected, 3 * size * 2)


def adds(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`add_scaled` of 64 tokens."""
    scale = config.residual_scale
    pair = normal(TOKENS, config.hidden), normal(TOKENS, config.hidden).to(DTYPE)

    def ours(pair: Pair) -> Tensor:
        return add_scaled(*pair, scale)

    def pytorch(pair: Pair) -> Tensor:
        return torch.add(*pair, alpha=scale)

    def expected(pair: Pair) -> Tensor:
        return add_scaled_reference(*pair, scale)

    return _beside("add_scaled", pair, ours, pytorch, expected, TOKENS * config.hidden * (4 + 2 + 4))


def norms(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`rms_norm_to`, the norm of 64 tokens."""
    eps = config.norm_eps
    pair = normal(TOKENS, config.hidden), normal(config.hidden)

    def ours(pair: Pair) -> Tensor:
        return rms_norm(*pair, eps, DTYPE)

    def pytorch(pair: Pair) -> Tensor:
        return torch_rms_norm(pair[0], (config.hidden,), pair[1], eps).to(DTYPE)

    def expected(pair: Pair) -> Tensor:
        return rms_norm_reference(*pair, eps)

    return _beside("rms_norm_to", pair, ours, pytorch, expected, TOKENS * config.hidden * (4 + 2) + 4 * config.hidden)


def _beside(subject: str, pair: Pair, ours: Call, pytorch: Call, expected: Call, nbytes: int) -> dict[str, Op]:
    """An op and PyTorch's way over the same operands, read and written `nbytes` a call."""
    copies = copies_of(nbytes)
    operands = [(pair[0].clone(), pair[1].clone()) for _ in range(copies)]

    def check(call: Call) -> None:
        wanted = expected(pair)
        require_close(subject, call((pair[0].clone(), pair[1])).float(), wanted, wanted.shape[1], ROUNDING)

    def timed(call: Call, first: float) -> Callable[[int], object]:
        return in_turn(operands, lambda one, _: call(one), first)

    op = Op(
        subject,
        "dense",
        FORMAT_OF_DTYPE[DTYPE],
        call=timed(ours, 0.0),
        check=partial(check, ours),
        distance=distance(copies, nbytes),
        read=lambda calls: nbytes,
        part=f"pp{TOKENS}",
    )
    return {"ours": op, "pytorch": replace(op, mode="pytorch", call=timed(pytorch, 0.5), check=partial(check, pytorch))}
