"""A step whose launches overlap: the same bits, and only weights are asked for before the wait.

Runs on a GPU, or in the interpreter's process (see `test_interpreted`), where a wait and a question do nothing.
"""

from __future__ import annotations

import os

import pytest
import torch
from cases import make_case, poison_allocator
from layer_cases import EPS, SIZES, make
from triton_backend import DEVICE, gpu_backends, on_device, there

from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import Weight

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from prosparse.kernels.triton import decode_layers as step  # noqa: E402
from prosparse.kernels.triton import glu_dense, glu_exact, linear, overlap  # noqa: E402
from prosparse.kernels.triton.gpu import Gpu, gpu_of  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_hopper = pytest.mark.skipif(
    not INTERPRETED and not overlap.can_overlap(gpu_of(torch.device(DEVICE))), reason="launches overlap from 9.0 on"
)


@needs_hopper
@pytest.mark.parametrize(("sequences", "fmt"), [(1, "bf16"), (1, "int8"), (5, "bf16")])
def test_layers_are_those_of_launches_one_after_the_other(sequences, fmt):
    sizes = SIZES[2]
    made, keys, values = make(sizes, fmt, (True, False), False)
    angles = [torch.randn(12, sizes[3] // 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    slots, starts = on_device(*range(sequences)), on_device(*range(3, 3 + sequences))
    keys, values = (part.repeat(1, 3, 1, 1, 1)[:, :sequences] for part in (keys, values))
    results = []
    for overlapped in (False, True):
        cache, tally = there(torch.stack([keys, values])), new_tally(DEVICE, 2)
        tickets = step.new_tickets(sizes[1], cache[0], sequences)
        place = step.Place(cache[0], cache[1], *map(there, angles), slots, starts, tickets)
        residual = there(torch.randn(sequences, sizes[0], generator=torch.Generator().manual_seed(3)))
        poison_allocator()
        for number, layer in enumerate(map(there, made)):
            residual = step.attention(
                residual, number, place, layer.norm, layer.qkv, None, layer.o, EPS, 0.7, 5, overlapped
            )
            residual = step.ffn(residual, there(layer.ffn), EPS, 0.7, tally[number], overlapped)
        results.append((residual, cache, tally))
    for alone, overlapping in zip(*results, strict=True):
        assert torch.equal(alone, overlapping) and int((alone != 0).sum()) > 0


def within(weight: Weight) -> set[int]:
    start = weight.codes.data_ptr()
    return set(range(start, start + weight.codes.untyped_storage().nbytes()))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU does not say what it was asked for")
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "neurons"), [(1, 40, 33), (1, 600, 3)])
def test_only_weights_are_asked_for(tokens, hidden, neurons, weights, monkeypatch):
    case, asked = make_case(tokens, hidden, neurons, weights), []
    monkeypatch.setattr(overlap, "ask_l2", lambda line: asked.extend(line.handle.data.flatten().tolist()))
    relu, x = Activation("relu"), case.x
    codes = [weight.codes for weight in case.weights]
    linear.launch(x, codes[0], overlap=True)
    row_lines = -(-codes[0].stride(0) * codes[0].element_size() // 128)
    assert set(asked) <= within(case.gate) and len(set(asked)) > 1
    if weights.is_floating_point:
        first_row = set(range(codes[0].data_ptr(), codes[0].data_ptr() + hidden * weights.itemsize, 128))
        assert first_row <= set(asked) and row_lines >= len(first_row)
    asked.clear()
    how = relu.code, relu.threshold, False, new_tally("cpu"), None, None
    glu_exact.launch(x, *codes, *how, True)
    assert set(asked) <= within(case.gate) and asked
    asked.clear()
    glu_dense.launch(x, *codes, *how, True)
    assert set(asked) <= within(case.gate) | within(case.up) and set(asked) & within(case.up)


def test_which_gpus_can():
    assert [overlap.can_overlap(Gpu(capability, 1)) for capability in (80, 89, 90, 120)] == [False, False, True, True]
