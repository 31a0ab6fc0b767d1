"""glu_values on every backend against float64."""

from __future__ import annotations

import pytest
import torch
from closeness import EPS

from prosparse.kernels.activation import Activation
from prosparse.kernels.glu_values import glu_values, glu_values_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ACTIVATIONS = [
    Activation("relu"), Activation("fatrelu", 0.25), Activation("relu2"), Activation("relu", on_up=True),
    Activation("silu"),
]  # fmt: skip
SHAPES = [(1, 1), (3, 7), (17, 1024), (33, 515), (2, 40000)]


def make_case(shape, dtype):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng).to(dtype) for _ in range(2)]


def meaning(gate, up, act):
    g, u = gate.double(), up.double()
    threshold = act.threshold if act.kind == "fatrelu" else 0
    closed = (g < threshold) if act.kind == "fatrelu" else (g <= 0)
    value = {"relu2": g * g, "silu": g / (1 + (-g).exp())}.get(act.kind, g)
    value = value if act.kind == "silu" else torch.where(closed, 0.0, value)
    return value * (torch.where(u <= 0, 0.0, u) if act.on_up else u)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, act, dtype):
    gate, up = make_case(shape, dtype)
    expected = meaning(gate, up, act)
    h = glu_values(gate, up, act)
    assert h is gate and h.dtype == dtype
    # silu, square and product round in fp32; then the result does, below the normal numbers by half of the smallest
    info = torch.finfo(dtype)
    bound = (8 * EPS + info.eps / 2) * expected.abs() + info.smallest_normal * info.eps
    assert bool(((h.double() - expected).abs() <= bound).all())
    assert bool((h[expected == 0] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS[:4], ids=str)
def test_equals_the_reference_bit_for_bit(compiled, act, dtype):
    gate, up = make_case((40, 333), dtype)
    other = gate.clone()
    glu_values_reference(other, up, act.code, act.threshold, act.on_up)
    assert torch.equal(glu_values(gate, up, act), other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_closed_neurons_are_zero_and_nan_is_active(backend, dtype):
    nan, inf = float("nan"), float("inf")
    gate = torch.tensor([[-1.0, 0.0, nan, 1.0, 1.0, -inf, inf]], dtype=dtype)
    up = torch.tensor([[inf, nan, 1.0, nan, inf, nan, 0.5]], dtype=dtype)
    h = glu_values(gate, up, Activation("relu"))[0].tolist()
    assert h[0] == h[1] == h[5] == 0 and h[4] == h[6] == inf
    assert h[2] != h[2] and h[3] != h[3]


@pytest.mark.parametrize("kind", ["relu", "fatrelu"])
def test_none_and_all_active(backend, kind):
    act = Activation(kind, 0.5 if kind == "fatrelu" else 0.0)
    _, up = make_case((20, 64), torch.bfloat16)
    assert not glu_values(torch.full((20, 64), -1.0, dtype=torch.bfloat16), up, act).any()
    assert torch.equal(glu_values(torch.ones(20, 64, dtype=torch.bfloat16), up, act), up)


def test_names_what_does_not_fit():
    gate, up = make_case((2, 8), torch.float32)
    with pytest.raises(ValueError, match=r"glu_values: gate and up must have one shape, got \(2, 8\) and \(2, 7\)"):
        glu_values(gate, up[:, :7], Activation("relu"))
    with pytest.raises(ValueError, match="glu_values: up must be torch.float32, got torch.float16"):
        glu_values(gate, up.half(), Activation("relu"))
    with pytest.raises(ValueError, match=r"gate must be contiguous, got strides \(1, 8\); call .contiguous"):
        glu_values(gate.t(), up.t(), Activation("relu"))


def test_the_compiled_op_checks_for_itself(compiled):
    gate, up = make_case((2, 8), torch.float32)
    op = torch.ops.prosparse.glu_values
    for wrong in ((gate, up[:, :7], 0), (gate, up.half(), 0), (gate, up.view(4, 4), 0), (gate.t(), up.t(), 0),
                  (gate, up, 3), (gate, up, 9)):  # fmt: skip
        with pytest.raises(RuntimeError, match="^glu_values: "):
            op(*wrong, 0.0, False)


def test_opcheck(backend):
    gate, up = make_case((3, 8), torch.bfloat16)
    torch.library.opcheck(torch.ops.prosparse.glu_values, (gate, up, 1, 0.1, False))
