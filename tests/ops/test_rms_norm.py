"""rms_norm on every backend against float64."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import EPS, LAMBDA

from prosparse.kernels.rms_norm import rms_norm


def make_case(tokens, hidden, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(tokens, hidden, generator=rng), torch.randn(hidden, generator=rng)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.5])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (1, 15), (2, 16), (5, 37), (16, 384), (17, 40), (1, 4096)])
def test_matches_float64(backend, tokens, hidden, eps):
    x, weight = make_case(tokens, hidden)
    mean_square = x.double().square().mean(-1, keepdim=True)
    expected = x.double() / (mean_square + torch.tensor(eps).double()).sqrt() * weight.double()
    # half of the relative error of the sum reaches the square root; then a division and two products round
    bound = (LAMBDA * math.sqrt(hidden) * EPS / 4 + 4 * EPS) * expected.abs()
    assert bool(((rms_norm(x, weight, eps).double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 50])
def test_it_is_rounded_once(backend, tokens, dtype):
    x, weight = make_case(tokens, 70)
    y = rms_norm(x, weight, 1e-5, dtype)
    assert y.dtype == dtype
    assert torch.equal(y, rms_norm(x, weight, 1e-5).to(dtype))


@pytest.mark.parametrize("tokens", [16, 40])
def test_a_token_does_not_depend_on_the_others(compiled, tokens):
    x, weight = make_case(tokens, 100)
    together = rms_norm(x, weight, 1e-5)
    for t in range(tokens):
        assert torch.equal(rms_norm(x[t : t + 1], weight, 1e-5)[0], together[t])


def test_zeros_and_what_is_not_finite(backend):
    weight = torch.ones(8)
    assert torch.equal(rms_norm(torch.zeros(1, 8), weight, 1e-5), torch.zeros(1, 8))
    x = torch.ones(2, 8)
    x[0, 3] = float("nan")
    y = rms_norm(x, weight, 1e-5)
    assert bool(y[0].isnan().all()) and bool(y[1].isfinite().all())


def test_names_what_does_not_fit():
    x, weight = make_case(2, 8)
    with pytest.raises(ValueError, match=r"rms_norm: x must be \[tokens, hidden\] and weight \[hidden\], got \(2, 8\)"):
        rms_norm(x, weight[:7], 1e-5)
    with pytest.raises(ValueError, match="rms_norm: x and weight must be contiguous float32"):
        rms_norm(x.half(), weight, 1e-5)


def test_the_compiled_op_checks_for_itself(compiled):
    x, weight = make_case(2, 8)
    for wrong in ((x, weight[:7]), (x.half(), weight), (x[0], weight)):
        with pytest.raises(RuntimeError, match="^rms_norm: "):
            torch.ops.prosparse.rms_norm(*wrong, 1e-5)


def test_opcheck(backend):
    torch.library.opcheck(torch.ops.prosparse.rms_norm, (*make_case(2, 8), 1e-5))
