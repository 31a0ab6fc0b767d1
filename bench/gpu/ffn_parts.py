"""The two halves of an exact FFN alone, and the steps of the operators published with ProSparse by their meaning.

A half reads a tenth of its matrices, so it gets copies of its own: as many as are cold by what is read of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import threshold

from prosparse.config import ModelConfig
from prosparse.kernels.activation import gate_value
from prosparse.kernels.gate_select import gate_select_reference
from prosparse.kernels.glu_dense import glu_dense_reference
from prosparse.kernels.linear import linear_reference
from prosparse.kernels.tally import new_tally
from prosparse.kernels.triton import axpy_active, ffn_23, gate_select, glu_active
from prosparse.kernels.weight import bytes_per_row

from ..ffn import make_layer, shift_of
from .clock import Call
from .subjects import CUBLAS, LEAST, SPARSITY, Setting, normal, right

UP_DOWN = "cuBLAS up and down in bf16, in a graph of the same run"
FEW_FLIPS = 8  # neurons that may lie within rounding of the threshold
ROUNDED = 1e-2  # of a result, L2: h in bf16
# Song et al., "ProSparse", 2024, table 2: one A100, bf16, one token, from dense to theirs.
PUBLISHED = {
    "prosparse-llama-2-7b": {"step 2": "90.55 to 45.38 us, 2.00 x", "step 3": "82.92 to 55.05 us, 1.51 x"},
    "prosparse-llama-2-13b": {"step 2": "131.36 to 53.78 us, 2.44 x", "step 3": "113.68 to 66.73 us, 1.70 x"},
}


def ffn_parts(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> Mapping[str, Callable[[], None]]:
    found = {f"ffn halves {fmt}": partial(_halves, setting, shape, config, fmt)}
    if fmt == "bf16":
        found["published steps"] = partial(_steps, setting, shape, config)
    return found


def _copies(setting: Setting, nbytes: float, *parts: Tensor) -> list[tuple[Tensor, ...]]:
    """Of tensors of which a call reads so many bytes."""
    return [tuple(part.clone() for part in parts) for _ in range(setting.copies(max(1, round(nbytes))))]


def _halves(setting: Setting, shape: str, config: ModelConfig, fmt: str) -> None:
    """`gate_select` and `glu_active`, against cuBLAS."""
    activation, row_bytes = config.activation, bytes_per_row(fmt, config.hidden)
    how = (activation.code, activation.threshold, activation.on_up)
    gate, up, down = (w.codes for w in make_layer(setting.maker(fmt), config.neurons, config.hidden))
    theirs = [w.codes for w in make_layer(setting.maker("bf16"), config.neurons, config.hidden)[1:]]
    x = normal(setting, 1, config.hidden)
    x[0, 0] = shift_of(config, SPARSITY.get(shape, 0.88))
    tally, own = new_tally(setting.device), x.bfloat16()
    listed = gate_select.launch(x, gate, *how[:2])
    count, opened = int(listed[1]), int((gate_select_reference(x, gate, *how[:2])[2] != 0).sum())
    if abs(count - opened) > FEW_FLIPS:
        raise AssertionError(f"gate_select lists {count} neurons, {opened} are active")
    expected = glu_dense_reference(x, gate, up, down, *how, new_tally(setting.device))
    actual = glu_active.launch(x, up, down, *listed, how[2], tally)
    right("glu_active", actual, expected, config.hidden + config.neurons, 2e-3)
    read, matrix = 2 * row_bytes * count, config.neurons * row_bytes
    gates, pairs = _copies(setting, matrix, gate), _copies(setting, read, up, down)
    dense = _copies(setting, 4 * config.neurons * config.hidden, *theirs)

    def active(i: int) -> Tensor:
        return glu_active.launch(x, *pairs[i % len(pairs)], *listed, how[2], tally)

    def cublas(i: int) -> Tensor:
        u, d = dense[i % len(dense)]
        return torch_linear(own, u) @ d

    def cublas_gate(i: int) -> Tensor:
        return torch_linear(own, dense[i // 2 % len(dense)][i % 2])  # a gate has the size of either

    calls: dict[str, tuple[Call, int]] = {
        "select": (lambda i: gate_select.launch(x, *gates[i % len(gates)], *how[:2]), max(len(gates), LEAST)),
        "active": (active, max(len(pairs), LEAST)),
        "cublas": (cublas, max(len(dense), LEAST)),
        "cublas gate": (cublas_gate, max(2 * len(dense), LEAST)),
    }
    timings = setting.times(calls)
    zeros = round(1 - count / config.neurons, 4)
    labels = {"mode": "exact", "activation_sparsity": zeros, "shape": shape, "weights": fmt, "layers": 1}
    setting.row(timings, "select", matrix, "cublas gate", CUBLAS, subject="gate_select", **labels)
    setting.row(timings, "active", read, "cublas", UP_DOWN, subject="glu_active", **labels)


def _steps(setting: Setting, shape: str, config: ModelConfig) -> None:
    """Step 2, up rows of what a dense gate leaves open, and step 3, their down rows; both against cuBLAS, in bf16."""
    activation, matrix = config.activation, 2 * config.neurons * config.hidden
    how = activation.code, activation.threshold
    gate, up, down = (w.codes for w in make_layer(setting.maker("bf16"), config.neurons, config.hidden))
    x = normal(setting, 1, config.hidden).bfloat16()
    x[0, 0] = shift_of(config, SPARSITY.get(shape, 0.88))
    g = torch_linear(x, gate)
    value = gate_value(g, *how)
    h, tally = ffn_23.launch(g[0], x, up, *how)[None], new_tally(setting.device)
    right("step 2", h, value.float() * linear_reference(x.float(), up), config.hidden, ROUNDED)
    y = axpy_active.launch(h, down, config.hidden, None, tally)
    right("step 3", y, h.float() @ down.float(), config.neurons, ROUNDED)
    count = int((value != 0).sum())
    read = 2 * config.hidden * count
    ups, downs = _copies(setting, read, up), _copies(setting, read, down)
    dense_ups, dense_downs = ups[: setting.copies(matrix)], downs[: setting.copies(matrix)]

    def dense_up(i: int) -> Tensor:
        return threshold(g, activation.threshold, 0.0).mul_(torch_linear(x, *dense_ups[i % len(dense_ups)]))

    calls: dict[str, tuple[Call, int]] = {
        "step 2": (lambda i: ffn_23.launch(g[0], x, *ups[i % len(ups)], *how), max(len(ups), LEAST)),
        "step 3": (
            lambda i: axpy_active.launch(h, *downs[i % len(downs)], config.hidden, None, tally),
            max(len(downs), LEAST),
        ),
        "dense step 2": (dense_up, max(len(dense_ups), LEAST)),
        "dense step 3": (lambda i: h @ dense_downs[i % len(dense_downs)][0], max(len(dense_downs), LEAST)),
    }
    timings = setting.times(calls)
    labels = {"activation_sparsity": round(1 - count / config.neurons, 4), "shape": shape, "weights": "bf16"}
    for step, subject in (("step 2", "ffn_23"), ("step 3", "ffn_4")):
        said = PUBLISHED.get(shape, {}).get(step)
        note = None if said is None else f"published, on an A100: {said}"
        own = {"subject": subject, "part": step, "layers": 1, **labels}
        setting.row(timings, f"dense {step}", matrix, f"dense {step}", CUBLAS, mode="cublas", **own)
        setting.row(timings, step, read, f"dense {step}", CUBLAS, mode="exact", note=note, **own)
