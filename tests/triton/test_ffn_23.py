"""The published operators by their meaning: a dense gate, step 2, and step 3 are an FFN. On a GPU or interpreted."""

from __future__ import annotations

import os

import pytest
import torch
from cases import PACKED, ffn_meaning, label, make_case, make_infinite, poison_allocator, pre_activation
from closeness import assert_within
from triton_backend import gpu_backends

from prosparse.kernels.activation import Activation
from prosparse.kernels.linear import linear_reference
from prosparse.kernels.tally import new_tally

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from prosparse.kernels.triton import axpy_active, ffn_23  # noqa: E402

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def step_2(g, case, activation):
    poison_allocator()
    arguments = (g, case.x, case.up.codes)
    return ffn_23.launch(*(t.to(DEVICE) for t in arguments), activation.code, activation.threshold).cpu()


@pytest.mark.parametrize("activation", [Activation("relu"), Activation("fatrelu", 0.5)], ids=str)
@pytest.mark.parametrize("weights", [torch.bfloat16, *PACKED], ids=label)
def test_with_step_3_it_is_an_ffn(weights, activation):
    case = make_case(1, 140, 75, weights)
    g = linear_reference(case.x, case.gate.codes)[0]
    mask = ~(pre_activation(case).value < activation.threshold)
    closed = (~mask[0]).nonzero().flatten().tolist()
    for row in closed:
        make_infinite(case.up, row)
        make_infinite(case.down, row)
    h = step_2(g, case, activation)
    assert 10 < len(closed) < 65 and bool((h[closed] == 0).all())
    down, tally = case.down.codes.to(DEVICE), new_tally(DEVICE)
    y = axpy_active.launch(h[None].to(DEVICE), down, 140, None, tally).cpu()
    for row in closed:  # the meaning multiplies them by zero
        make_zero(case.up, row)
        make_zero(case.down, row)
    assert_within(y, ffn_meaning(case, activation, mask), "both steps")


def make_zero(weight, row):
    weight.codes[row] = 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=label)
def test_all_open_none_open_and_nan(dtype):
    case = make_case(1, 40, 75)
    relu, up = Activation("relu"), case.x.double() @ case.up.values().double().T
    for g in (torch.ones(75, dtype=dtype), -torch.ones(75, dtype=dtype)):
        h = step_2(g, case, relu)
        assert h.dtype == dtype
        torch.testing.assert_close(h, (g.clamp(min=0) * up[0]).to(dtype), rtol=1e-2, atol=1e-5)
    g[3] = float("nan")
    assert step_2(g, case, relu).isnan().nonzero().flatten().tolist() == [3]
