"""What a CUDA graph needs of the launchers: norm and residual inside, the same bits again.

Runs on a GPU, or in the interpreter's process (see `test_interpreted`).
"""

from __future__ import annotations

import os

import pytest
import torch
from cases import make_case, poison_allocator
from triton_backend import gpu_backends

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import compact
from prosparse.kernels.rms_norm import rms_norm_reference
from prosparse.kernels.tally import new_tally

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from prosparse.kernels.triton import glu_dense, glu_exact, glu_predicted, linear  # noqa: E402

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_same_bits_whatever_memory_held(tokens):
    case = make_case(tokens, 40, 75)
    x, *weights = (tensor.to(DEVICE) for tensor in (case.x, *(weight.codes for weight in case.weights)))
    activation = Activation("fatrelu", 0.3, on_up=True)
    results, tallies = [], []
    for _ in range(2):
        tallies.append(new_tally(DEVICE))
        poison_allocator()
        arguments = (x, *weights, activation.code, activation.threshold, activation.on_up, tallies[-1])
        results.append(glu_exact.launch(*arguments))
    assert torch.equal(results[0], results[1]) and torch.equal(tallies[0], tallies[1])
    assert bool(results[0].isfinite().all()) and int(tallies[0][0]) > 0


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.uint8], ids=["bf16", "int4"])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_norm_in_front_and_residual_behind(tokens, weights):
    case = make_case(tokens, 40, 75, weights)
    x, gate, up, down = (tensor.to(DEVICE) for tensor in (case.x, *(weight.codes for weight in case.weights)))
    norm, behind = (normal(40, seed=3), 1e-5), normal(tokens, 75, seed=4)
    inner = rms_norm_reference(x, *norm)
    poison_allocator()
    fused = linear.launch(x, gate, norm, (behind, 0.3))
    torch.testing.assert_close(fused, behind + 0.3 * linear.launch(inner, gate), rtol=1e-5, atol=1e-5)
    for op, kind in ((glu_exact, "relu"), (glu_dense, "silu")):
        arguments = (gate, up, down, Activation(kind).code, 0.0, False)
        poison_allocator()
        fused = op.launch(x, *arguments, new_tally(DEVICE), norm, (x, 0.3))
        expected = x + 0.3 * op.launch(inner, *arguments, new_tally(DEVICE))
        torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)
    index, count = compact(torch.arange(75, device=DEVICE) % 3 > 0)
    arguments = (gate, up, down, index, count, Activation("relu").code, 0.0, False)
    fused = glu_predicted.launch(x, *arguments, new_tally(DEVICE), norm, (x, 0.3))
    expected = x + 0.3 * glu_predicted.launch(inner, *arguments, new_tally(DEVICE))
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


def test_infinity_stays_infinite_in_pieces():
    """On the tensor cores x is cut into pieces; what is left of infinity must not become NaN."""
    x, weight = torch.ones(5, 40, device=DEVICE), torch.ones(20, 40, device=DEVICE).bfloat16()
    x[1, 3], x[2, 3] = float("inf"), float("-inf")
    y = linear.launch(x, weight)
    expected = torch.tensor([40.0, float("inf"), float("-inf"), 40.0, 40.0], device=DEVICE)
    assert torch.equal(y, expected[:, None].expand(5, 20))
