"""The launches of a decode step: where sequences lie is read on the device, and nothing else is different.

Runs on a GPU, or in the interpreter's process (see `test_interpreted`).
"""

from __future__ import annotations

import pytest
import torch
from cases import poison_allocator
from layer_cases import EPS, SIZES, make
from triton_backend import DEVICE, gpu_backends, on_device, there

from prosparse.kernels.attend import attend_reference
from prosparse.kernels.decode_layers import DecodeLayers, decode_layers_reference
from prosparse.kernels.rotary_store import rotary_store_reference
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import in_format

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from prosparse.kernels.triton import attend_step, embed  # noqa: E402
from prosparse.kernels.triton import decode_layers as step  # noqa: E402

ROOM = 90  # positions of a cache


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


# heads, kv_heads, head_dim: shared key heads, one key head for more queries than a program takes, odd channels
HEADS = [(6, 2, 16), (20, 1, 8), (3, 3, 10)]


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("starts", [(0,), (89,), (1, 64), (63, 0, 85)], ids=str)
def test_attention_of_one_token_each(starts, heads, window):
    heads, kv_heads, head_dim = heads
    sequences, width = len(starts), (heads + 2 * kv_heads) * head_dim
    qkv, bias = normal(sequences, width), normal(width, seed=5)
    cos, sin = normal(ROOM, head_dim // 2, seed=1), normal(ROOM, head_dim // 2, seed=2)
    cache = torch.stack([normal(4, kv_heads, ROOM, head_dim, seed=seed) for seed in (3, 4)]).bfloat16()
    slots = (2, 0, 3)[:sequences]
    expected_cache, expected = cache.clone(), []
    for i, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        k, v = (part[slot, :, : start + 1] for part in expected_cache)
        own = slice(start, start + 1)
        q = rotary_store_reference(qkv[i : i + 1] + bias, cos[own], sin[own], k, v, start)
        expected.append(attend_reference(q, k, v, start, window))
        cache[:, slot, :, start:] = float("nan")  # what is there before the step, or behind its end, is not used
        expected_cache[:, slot, :, start + 1 :] = float("nan")
    tickets = torch.zeros(attend_step.tickets_of(heads, kv_heads, sequences), dtype=torch.int32, device=DEVICE)
    poison_allocator()
    actual = attend_step.launch(qkv, bias, cos, sin, *cache, on_device(*slots), on_device(*starts), window, tickets)
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cache, expected_cache, equal_nan=True)
    assert bool((tickets > 0).all()), "every key head was joined by its last program"


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "int8", "int4"])
def test_embeddings_and_tickets(fmt):
    table = in_format(torch.randn(50, 75, generator=torch.Generator().manual_seed(0)), fmt)
    ids, tickets = torch.tensor([49, 0, 7]), torch.full((2, 700), 3, dtype=torch.int32, device=DEVICE)
    actual = embed.launch(ids.to(DEVICE), table.codes.to(DEVICE), 75, 1.5, tickets)
    torch.testing.assert_close(actual.cpu(), table.rows_of(ids) * 1.5, rtol=1e-6, atol=1e-6)
    assert not tickets.any()


@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4", "fp32"])
@pytest.mark.parametrize(
    ("sizes", "starts", "dense", "bias"),
    [
        (SIZES[0], (3,), (True, False), True),
        (SIZES[1], (7, 0), (False, False), False),
        (SIZES[2], (11,), (False, True), False),
    ],
    ids=["bias", "two", "odd"],
)
def test_layers_are_those_of_the_op(sizes, starts, dense, bias, fmt):
    made, keys, values = make(sizes, fmt, dense, bias)
    residual = normal(len(starts), sizes[0], seed=3).cpu()
    cos, sin = (normal(12, sizes[3] // 2, seed=seed).cpu() for seed in (1, 2))
    slots, scale, window = [2, 0][: len(starts)], 0.7, 5
    op = DecodeLayers(made, EPS, scale, window)
    tallies = [new_tally(device, 2) for device in ("cpu", DEVICE)]
    activation = (op.activation.code, op.activation.threshold, op.activation.on_up)
    place = step.Place(
        there(keys), there(values), there(cos), there(sin), on_device(*slots), on_device(*starts),
        step.new_tickets(sizes[1], there(keys), len(starts)),
    )  # fmt: skip
    expected = decode_layers_reference(
        residual, op.weights, op.biases, [], [0, 0], op.dense, keys, values, cos[list(starts)], sin[list(starts)],
        slots, list(starts), window, EPS, scale, *activation, tallies[0],
    )  # fmt: skip
    actual = residual.to(DEVICE)
    for number, layer in enumerate(map(there, made)):
        own = there(layer.ffn)
        actual = step.attention(
            actual, number, place, layer.norm, layer.qkv, layer.qkv_bias, layer.o, EPS, scale, window
        )
        actual = step.ffn(actual, own, EPS, scale, tallies[1][number])
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(tallies[1].cpu(), tallies[0])
