"""pytest-benchmark over the ops, small enough for every test run; `--benchmark-only` shows the table.

The shapes fit into caches, so these times say whether an op got slower, not how fast it is: that is `prosparse.bench`.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

from prosparse.bench.check import OPS, check_ffn, clear_input
from prosparse.kernels.activation import Activation
from prosparse.kernels.attend import attend
from prosparse.kernels.linear import linear
from prosparse.kernels.tally import NONZERO, new_tally
from prosparse.weights.synthetic import MatrixMaker

HIDDEN, NEURONS = 256, 704
ROUNDS = {"rounds": 20, "iterations": 5, "warmup_rounds": 1}


CASES = [("dense", "bf16", 1.175), ("exact", "bf16", 0.5), ("exact", "bf16", 1.175), ("exact", "bf16", 2.05),
         ("exact", "fp32", 1.175)]  # fmt: skip


@pytest.mark.parametrize(("mode", "fmt", "threshold"), CASES)
def test_ffn(benchmark, mode, fmt, threshold):
    maker, activation = MatrixMaker(fmt), Activation("fatrelu", threshold)
    gate, up, down = (maker.matrix(NEURONS, HIDDEN, HIDDEN**-0.5) for _ in range(3))
    x = clear_input(gate, activation)
    check_ffn(mode, gate, up, down, activation, x)
    tally = new_tally(x.device)
    benchmark.pedantic(OPS[mode], (x, gate, up, down, activation, tally), **ROUNDS)
    once = new_tally(x.device)
    OPS[mode](x, gate, up, down, activation, once)
    benchmark.extra_info |= {"activation_sparsity": 1 - int(once[NONZERO]) / NEURONS, "weights": fmt}
    calls = tally // once.clamp_min(1)
    assert once[NONZERO] > 0 and torch.equal(
        calls[0] * once, tally
    )  # a count does not depend on how often it ran before


@pytest.mark.parametrize("fmt", ["bf16", "fp32"])
def test_linear(benchmark, fmt):
    weight = MatrixMaker(fmt).matrix(NEURONS, HIDDEN, HIDDEN**-0.5)
    x = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0))
    y = benchmark.pedantic(linear, (x, weight), **ROUNDS)
    torch.testing.assert_close(y.double(), x.double() @ weight.codes.double().T, rtol=1e-4, atol=1e-5)
    benchmark.extra_info |= {"activation_sparsity": 0.0, "weights": fmt}


@pytest.mark.parametrize("whose", ["ours", "pytorch"])
def test_attention_of_one_token(benchmark, whose):
    """The embedded model's heads over a full cache of 512 positions, beside PyTorch's attention with the same trick."""
    heads, kv_heads, head_dim, length = 6, 2, 64, 512
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(1, heads, head_dim, generator=rng)
    keys, values = (torch.randn(kv_heads, length, head_dim, generator=rng).bfloat16() for _ in range(2))

    def pytorch(*_):
        grouped = q.view(1, kv_heads, heads // kv_heads, head_dim).to(keys.dtype)
        return torch.nn.functional.scaled_dot_product_attention(grouped, keys[None], values[None]).float()

    ours = benchmark.pedantic(attend if whose == "ours" else pytorch, (q, keys, values, length - 1), **ROUNDS)
    torch.testing.assert_close(ours.view(-1), pytorch().view(-1), rtol=2e-2, atol=2e-2)
