"""add_scaled on every backend against float64."""

from __future__ import annotations

import pytest
import torch
from closeness import EPS

from prosparse.kernels.add_scaled import add_scaled

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_case(shape, dtype):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=rng), torch.randn(shape, generator=rng).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.2, -3.5])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 1024), (2, 40000)], ids=str)
def test_matches_float64(backend, shape, scale, dtype):
    residual, x = make_case(shape, dtype)
    held = residual.clone()
    product = torch.tensor(scale, dtype=torch.float32).double() * x.double()
    expected = residual.double() + product
    y = add_scaled(residual, x, scale)
    assert y.dtype == torch.float32 and torch.equal(residual, held)  # product and sum round once each
    assert bool(((y.double() - expected).abs() <= EPS * (product.abs() + expected.abs())).all())


def test_what_is_not_finite_stays_where_it_is(backend):
    residual, x = make_case((2, 8), torch.bfloat16)
    x[0, 3] = float("nan")
    y = add_scaled(residual, x, 1.0)
    assert bool(y[0, 3].isnan()) and int(y.isfinite().sum()) == 15


def test_names_what_does_not_fit():
    residual, x = make_case((2, 8), torch.bfloat16)
    with pytest.raises(ValueError, match=r"residual and x must have one shape, got \(2, 8\) and \(2, 7\)"):
        add_scaled(residual, x[:, :7], 1.0)
    with pytest.raises(ValueError, match=r"residual must be torch.float32, got torch.bfloat16; convert it"):
        add_scaled(x, x, 1.0)
    with pytest.raises(ValueError, match=r"x must be torch.float32 or .* or torch.bfloat16, got torch.int64"):
        add_scaled(residual, x.long(), 1.0)
    with pytest.raises(ValueError, match=r"residual must be contiguous, got strides \(1, 8\)"):
        add_scaled(residual.t(), x.t(), 1.0)


def test_the_compiled_op_checks_for_itself(compiled):
    residual, x = make_case((2, 8), torch.bfloat16)
    for wrong in ((residual, x[:, :7]), (x, x), (residual.t(), x.t()), (residual, x.long()), (residual[0], x[0])):
        with pytest.raises(RuntimeError, match="^add_scaled: "):
            torch.ops.prosparse.add_scaled(*wrong, 1.0)


def test_opcheck(backend):
    torch.library.opcheck(torch.ops.prosparse.add_scaled, (*make_case((3, 8), torch.bfloat16), 0.5))
