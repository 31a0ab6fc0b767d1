"""What is compiled, for which GPUs: the launches of a decode step at the sizes of real models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prosparse.kernels import quant
from prosparse.kernels.activation import Activation
from prosparse.kernels.predict_select import words
from prosparse.kernels.tally import new_tally
from prosparse.kernels.triton import (
    argmax,
    attend,
    attend_step,
    axpy_active,
    embed,
    ffn_23,
    gate_select,
    glu_active,
    glu_dense,
    glu_exact,
    glu_predicted,
    linear,
    plain_dense,
    plain_exact,
    predict_select,
    rms_norm,
    rotary_store,
    sign_select,
)
from prosparse.kernels.triton.gpu import Gpu
from prosparse.kernels.triton.layout import Norm
from prosparse.kernels.triton.overlap import can_overlap
from prosparse.kernels.weight import FORMATS

from .launches import Launch, launches


@dataclass(frozen=True)
class Target:
    """A GPU, from its data sheet and programming guide.

    Args:
        name: a board with this compute capability.
        gpu: capability and multiprocessors.
        shared: bytes of shared memory of a multiprocessor that programs may use, 1 KiB for each included.
        threads, blocks: that a multiprocessor runs at once.
        bandwidth: GB/s of its memory.
        latency_us: of a load while the memory is busy. An assumption, to be measured.
    """

    name: str
    gpu: Gpu
    shared: int
    threads: int
    blocks: int
    bandwidth: float
    latency_us: float

    @property
    def needed_in_flight(self) -> float:
        """Bytes a multiprocessor must have asked for at any time to keep the memory busy (Little's law)."""
        return self.bandwidth * 1e3 * self.latency_us / self.gpu.sms


TARGETS = {
    80: Target("A100", Gpu(80, 108), 164 << 10, 2048, 32, 2039, 0.60),
    86: Target("RTX 3090", Gpu(86, 82), 100 << 10, 1536, 16, 936, 0.60),
    89: Target("RTX 4090", Gpu(89, 128), 100 << 10, 1536, 24, 1008, 0.60),
    90: Target("H100", Gpu(90, 132), 228 << 10, 2048, 32, 3350, 0.75),
    100: Target("B200", Gpu(100, 148), 228 << 10, 2048, 32, 8000, 0.85),
    120: Target("RTX 5090", Gpu(120, 170), 100 << 10, 1536, 24, 1792, 0.65),
}


@dataclass(frozen=True)
class Model:
    hidden: int
    neurons: int
    heads: int
    kv_heads: int
    head_dim: int


MODELS = {
    "1B": Model(1536, 3840, 24, 8, 64),
    "7B": Model(4096, 11008, 32, 32, 128),
    "13B": Model(5120, 13824, 40, 40, 128),
}
CONTEXT = 4096
RANK = 256  # of a predictor
VOCAB = 32000


@dataclass(frozen=True)
class Case:
    """One op, or all that a layer needs.

    Args:
        op: exact, select, active, dense, predicted, guess, rank, signs, plain, axpy, linear, argmax, published,
            attention, step (what a decode step has beside linear and FFN), overlap (its launches where they overlap).
        model: a key of `MODELS`.
        fmt: format of the weights.
        tokens: of the step.
    """

    op: str
    model: str
    fmt: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.op} {self.model} {self.fmt} x{self.tokens}"


QUICK = [
    Case("exact", "7B", "bf16", 1),
    Case("predicted", "7B", "bf16", 1),
    Case("linear", "7B", "int4", 1),
    Case("attention", "7B", "bf16", 1),
    Case("step", "7B", "bf16", 1),
    Case("overlap", "7B", "bf16", 1),
]
FULL = [
    *(Case("exact", model, "bf16", 1) for model in MODELS),
    *(Case(op, "7B", "bf16", 1) for op in ("select", "active", "dense", "linear")),
    *(Case(op, "7B", "bf16", 4) for op in ("exact", "linear")),
    *(Case("exact", model, "bf16", 8) for model in ("1B", "7B")),
    *(Case("attention", model, "bf16", 1) for model in ("1B", "7B")),
    *(Case("step", model, "bf16", tokens) for model in ("1B", "7B") for tokens in (1, 8)),
    *(Case("step", "7B", fmt, 1) for fmt in ("int8", "int4")),
    *(Case("exact", "7B", fmt, 1) for fmt in ("fp32", "fp16", "int8", "int4")),
    *(Case("exact", model, fmt, 1) for model in ("1B", "13B") for fmt in ("int8", "int4")),
    *(Case("exact", "7B", fmt, 8) for fmt in ("int8", "int4")),
    Case("linear", "7B", "int4", 1),
    *(Case("predicted", "7B", fmt, 1) for fmt in ("bf16", "int8", "int4")),
    Case("predicted", "7B", "bf16", 8),
    *(Case("guess", "7B", "int4", tokens) for tokens in (1, 8)),
    *(Case("rank", "7B", "int8", tokens) for tokens in (1, 8)),
    *(Case("signs", "7B", "bf16", tokens) for tokens in (1, 8)),
    *(Case("plain", "7B", "bf16", tokens) for tokens in (1, 8)),
    Case("axpy", "7B", "bf16", 1),
    Case("argmax", "7B", "fp32", 1),
    Case("published", "7B", "bf16", 1),
    Case("overlap", "1B", "bf16", 1),
    *(Case("overlap", "7B", fmt, 1) for fmt in ("bf16", "int4")),
]


def launches_of(case: Case, gpu: Gpu) -> Iterator[Launch]:
    """Every launch of a case on a GPU."""
    model, tokens = MODELS[case.model], case.tokens
    x = _empty(tokens, model.hidden)
    gate, up, down = (_weight(case.fmt, model.neurons, model.hidden) for _ in range(3))
    tally, norm = new_tally("meta"), (_empty(model.hidden), 1e-5)
    if case.op == "exact":
        fatrelu = Activation("fatrelu", 0.01)
        arguments = (x, gate, up, down, fatrelu.code, fatrelu.threshold, False, tally)
        yield from launches(gpu, glu_exact.launch, *arguments, norm, (x, 0.2))
    elif case.op == "dense":
        yield from launches(gpu, glu_dense.launch, x, gate, up, down, Activation("silu").code, 0.0, False, tally)
    elif case.op == "select":
        yield from launches(gpu, gate_select.launch, x, gate, Activation("relu").code, 0.0)
    elif case.op == "active":
        index, count = (_empty(n, dtype=torch.int32) for n in (model.neurons, 1))
        value = _empty(tokens, model.neurons)
        yield from launches(gpu, glu_active.launch, x, up, down, index, count, value, False, tally)
    elif case.op == "predicted":
        index, count = (_empty(n, dtype=torch.int32) for n in (model.neurons, 1))
        relu = Activation("relu").code, 0.0, False
        yield from launches(gpu, glu_predicted.launch, x, gate, up, down, index, count, *relu, tally, norm, (x, 0.2))
    elif case.op in ("guess", "rank"):
        columns = model.hidden if case.op == "guess" else RANK
        second, offset = _weight(case.fmt, model.neurons, columns), _empty(model.neurons)
        yield from launches(gpu, predict_select.launch, _empty(tokens, columns), second, offset)
    elif case.op == "signs":
        signs = _empty(model.neurons, words(model.hidden), dtype=torch.int64)
        yield from launches(gpu, sign_select.launch, x, signs, _empty(model.neurons))
    elif case.op == "plain":
        biased = x, gate, _empty(model.neurons), down, _empty(model.hidden), Activation("relu").code, 0.0, tally
        yield from launches(gpu, plain_exact.launch, *biased)
        yield from launches(gpu, plain_dense.launch, *biased)
    elif case.op == "axpy":
        h = _empty(tokens, model.neurons, dtype=torch.bfloat16)
        yield from launches(gpu, axpy_active.launch, h, down, model.hidden, None, tally)
    elif case.op == "published":
        yield from launches(gpu, ffn_23.launch, _empty(model.neurons), x, up, Activation("relu").code, 0.0)
    elif case.op == "argmax":
        yield from launches(gpu, argmax.launch, _empty(tokens, VOCAB))
    elif case.op == "linear":
        yield from launches(gpu, linear.launch, x, gate, norm)
    elif case.op == "overlap":
        if can_overlap(gpu):
            yield from _overlapping(case, gpu, x, (gate, up, down), tally, norm)
    else:
        cache = _empty(tokens, model.kv_heads, CONTEXT, model.head_dim, dtype=torch.bfloat16)
        qkv = _empty(tokens, (model.heads + 2 * model.kv_heads) * model.head_dim)
        angles = _empty(CONTEXT, model.head_dim // 2)
        if case.op == "step":
            places, ids = _empty(tokens, dtype=torch.int32), _empty(tokens, dtype=torch.int64)
            arguments = (qkv, None, angles, angles, cache, cache, places, places, 0, places)
            yield from launches(gpu, embed.launch, ids, gate, model.hidden, 1.0, places)
            yield from launches(gpu, attend_step.launch, *arguments)
            return
        own = (cache[0], cache[0], CONTEXT - tokens)
        yield from launches(gpu, rms_norm.launch, x, _empty(model.hidden), 1e-5)
        yield from launches(gpu, rotary_store.launch, qkv, angles, angles, *own)
        yield from launches(gpu, attend.launch, _empty(tokens, model.heads, model.head_dim), *own, 0)


def _overlapping(
    case: Case, gpu: Gpu, x: Tensor, weights: tuple[Tensor, Tensor, Tensor], tally: Tensor, norm: Norm
) -> Iterator[Launch]:
    """The launches of a layer, each of which may begin while the one before it ends."""
    model, tokens = MODELS[case.model], case.tokens
    how = Activation("fatrelu", 0.01).code, 0.01, False, tally, norm, (x, 0.2), True
    cache = _empty(tokens, model.kv_heads, CONTEXT, model.head_dim, dtype=torch.bfloat16)
    angles, places = _empty(CONTEXT, model.head_dim // 2), _empty(tokens, dtype=torch.int32)
    qkv = _empty(tokens, (model.heads + 2 * model.kv_heads) * model.head_dim)
    yield from launches(gpu, linear.launch, x, weights[0], norm, None, True)
    yield from launches(gpu, linear.launch, x, weights[0], None, (_empty(tokens, model.neurons), 0.2), True)
    yield from launches(
        gpu, attend_step.launch, qkv, None, angles, angles, cache, cache, places, places, 0, places, True
    )
    yield from launches(gpu, glu_exact.launch, x, *weights, *how)
    yield from launches(gpu, glu_dense.launch, x, *weights, *how)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _weight(fmt: str, rows: int, columns: int) -> Tensor:
    return quant.empty(fmt, rows, columns, "meta") if fmt in quant.GROUP else _empty(rows, columns, dtype=FORMATS[fmt])
