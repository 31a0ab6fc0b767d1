"""Single ops at real sizes: `linear`, the FFNs, attention; against cuBLAS and the floor. `ffn_parts` has the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention, threshold

from prosparse.config import ModelConfig
from prosparse.kernels.attend import attend_reference
from prosparse.kernels.glu_dense import glu_dense_reference
from prosparse.kernels.linear import linear_reference
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS, new_tally
from prosparse.kernels.triton import attend_step, glu_dense, glu_exact, linear
from prosparse.kernels.weight import Weight, bytes_per_row

from ..ffn import make_layer, shift_of
from .clock import Call
from .ffn_parts import ffn_parts
from .subjects import CUBLAS, LEAST, SPARSITY, Setting, normal, right

CONTEXTS = (512, 4096)
WHOLE = "glu_dense over the same weights in the same run"


def ops(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> Mapping[str, Callable[[], None]]:
    """Every op of a decode step with one token."""
    attended, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "qkv": (attended + 2 * kv, config.hidden),
        "o": (config.hidden, attended),
        "gate": (config.neurons, config.hidden),
        "lm_head": (config.vocab, config.hidden),
    }
    found = {f"linear {part} {fmt}": partial(_linear, setting, shape, fmt, part, *sizes[part]) for part in sizes}
    found[f"ffn {fmt}"] = partial(ffn, setting, shape, config, fmt, SPARSITY.get(shape, 0.88))
    found |= ffn_parts(setting, shape, config, fmt)
    if fmt == "bf16":
        for context in CONTEXTS:
            found[f"attend {context}"] = partial(attend, setting, shape, config, context)
    return found


def ffns(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> Mapping[str, Callable[[], None]]:
    """FFNs from no zeros to nearly all."""
    shares = (0.0, 0.5, 0.7, 0.8, 0.95, 0.98)
    return {f"ffn {fmt} at {share}": partial(ffn, setting, shape, config, fmt, share) for share in shares}


def _linear(setting: Setting, shape: str, fmt: str, part: str, rows: int, columns: int) -> None:
    nbytes = rows * bytes_per_row(fmt, columns)
    weights = [setting.maker(fmt).matrix(rows, columns, columns**-0.5) for _ in range(setting.copies(nbytes))]
    theirs = [
        setting.maker("bf16").matrix(rows, columns, columns**-0.5).codes
        for _ in range(setting.copies(2 * rows * columns))
    ]
    x = normal(setting, 1, columns)
    right(f"linear {part}", linear.launch(x, weights[0].codes), linear_reference(x, weights[0].codes), columns)
    own, n, m = x.bfloat16(), len(weights), len(theirs)
    timings = setting.times(
        {
            "ours": (lambda i: linear.launch(x, weights[i % n].codes), max(n, LEAST)),
            "cublas": (lambda i: torch_linear(own, theirs[i % m]), max(m, LEAST)),
        }
    )
    labels = {"subject": "linear", "part": part, "shape": shape, "layers": 1}
    setting.row(timings, "ours", nbytes, "cublas", CUBLAS, mode="dense", weights=fmt, **labels)
    if fmt == "bf16":
        setting.row(timings, "cublas", 2 * rows * columns, "cublas", CUBLAS, mode="cublas", weights="bf16", **labels)


def ffn(setting: Setting, shape: str, config: ModelConfig, fmt: str, sparsity: float) -> None:
    """An FFN dense and exact, against cuBLAS."""
    activation = config.activation
    how = (activation.code, activation.threshold, activation.on_up)
    maker, row_bytes = setting.maker(fmt), bytes_per_row(fmt, config.hidden)
    layers = [
        make_layer(maker, config.neurons, config.hidden) for _ in range(setting.copies(3 * config.neurons * row_bytes))
    ]
    bf16 = layers if fmt == "bf16" else _in_bf16(setting, config)
    x = normal(setting, 1, config.hidden)
    x[0, 0] = shift_of(config, sparsity)
    own, n, m = x.bfloat16(), len(layers), len(bf16)
    gate, up, down = (weight.codes for weight in layers[0])
    expected = glu_dense_reference(x, gate, up, down, *how, new_tally(setting.device))
    tallies = {mode: new_tally(setting.device) for mode in ("dense", "exact")}
    right("glu_dense", glu_dense.launch(x, gate, up, down, *how, tallies["dense"]), expected, sum(gate.shape), 2e-3)
    done = []
    for layer in layers:
        tallies["exact"].zero_()
        actual = glu_exact.launch(x, *(weight.codes for weight in layer), *how, tallies["exact"])
        done.append(tallies["exact"].tolist())
        if layer is layers[0]:
            right("glu_exact", actual, expected, sum(gate.shape), 2e-3)

    def cublas(i: int) -> Tensor:
        g, u, d = bf16[i % m]
        value = threshold(torch_linear(own, g.codes), activation.threshold, 0.0)  # one launch, as few as can be
        return value.mul_(torch_linear(own, u.codes)) @ d.codes

    def whole(op: Callable[..., Tensor], mode: str, i: int) -> Tensor:
        return op(x, *(weight.codes for weight in layers[i % n]), *how, tallies[mode])

    many = max(n, LEAST)
    calls: dict[str, tuple[Call, int]] = {
        "dense": (partial(whole, glu_dense.launch, "dense"), many),
        "exact": (partial(whole, glu_exact.launch, "exact"), many),
        "cublas": (cublas, max(m, LEAST)),
    }
    timings = setting.times(calls)
    matrix = config.neurons * row_bytes
    read = row_bytes * mean(counts[UP_ROWS] + counts[DOWN_ROWS] for counts in done)
    zeros = round(1 - mean(counts[NONZERO] for counts in done) / config.neurons, 4)
    labels = {"shape": shape, "weights": fmt, "layers": 1}
    ffn_labels = {"subject": "ffn", "activation_sparsity": zeros, **labels}
    setting.row(timings, "cublas", 6 * config.neurons * config.hidden, "cublas", CUBLAS, mode="cublas", **ffn_labels)
    setting.row(timings, "dense", 3 * matrix, "cublas", CUBLAS, mode="dense", **ffn_labels)
    setting.row(timings, "exact", matrix + read, "dense", WHOLE, mode="exact", **ffn_labels)
    setting.row(timings, "exact", matrix + read, "cublas", CUBLAS, mode="exact", **ffn_labels)


def _in_bf16(setting: Setting, config: ModelConfig) -> list[tuple[Weight, Weight, Weight]]:
    maker = setting.maker("bf16")
    copies = setting.copies(6 * config.neurons * config.hidden)
    return [make_layer(maker, config.neurons, config.hidden) for _ in range(copies)]


def attend(setting: Setting, shape: str, config: ModelConfig, context: int, part: str | None = None) -> None:
    """`attend_step` of one sequence at the end of a full cache, against PyTorch's attention over the same."""
    kv, head_dim, start = config.kv_heads, config.head_dim, context - 1
    nbytes = 2 * kv * context * head_dim * 2
    caches = [normal(setting, 2, 1, kv, context, head_dim).bfloat16() for _ in range(setting.copies(nbytes))]
    qkv = normal(setting, 1, (config.heads + 2 * kv) * head_dim)
    cos, sin = torch.ones(context, head_dim // 2, device=setting.device), torch.zeros(1, device=setting.device)
    sin = sin.expand(context, head_dim // 2).contiguous()
    slots = torch.zeros(1, dtype=torch.int32, device=setting.device)
    starts = torch.full((1,), start, dtype=torch.int32, device=setting.device)
    tickets = torch.zeros(
        len(caches), attend_step.tickets_of(config.heads, kv, 1), dtype=torch.int32, device=setting.device
    )
    n = len(caches)

    def ours(i: int) -> Tensor:
        if i % n == 0:
            tickets.zero_()
        keys, values = caches[i % n]
        return attend_step.launch(qkv, None, cos, sin, keys, values, slots, starts, 0, tickets[i % n])

    q = qkv[:, : config.heads * head_dim].view(1, config.heads, head_dim)

    def theirs(i: int) -> Tensor:
        keys, values = caches[i % n]
        grouped = q.view(1, kv, config.heads // kv, head_dim).to(keys.dtype)
        return scaled_dot_product_attention(grouped, keys, values)

    keys, values = caches[0]
    actual = ours(0)  # writes the new token
    right("attend_step", actual, attend_reference(q, keys[0], values[0], start, 0), context + head_dim)
    timings = setting.times({"ours": (ours, max(n, LEAST)), "sdpa": (theirs, max(n, LEAST))})
    labels = {"subject": "attend", "shape": shape, "weights": "bf16", "context": context, "layers": 1, "part": part}
    base = "PyTorch's attention alone, in a graph of the same run"
    setting.row(timings, "ours", nbytes, "sdpa", base, mode="dense", **labels)
    setting.row(timings, "sdpa", nbytes, "sdpa", base, mode="pytorch", **labels)
