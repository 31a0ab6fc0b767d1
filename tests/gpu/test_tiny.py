"""Every launch of a decode step once, at sizes that tools which watch each access can bear."""

from __future__ import annotations

import os

import pytest
import torch

from prosparse.kernels.activation import Activation
from prosparse.kernels.decode_layers import Glu
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import in_format

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("PROSPARSE_TEST_GPU") != "1", reason="no CUDA device here"
    ),
]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("sequences", [1, 6])
def test_a_layer(sequences, fmt, dense):
    from prosparse.kernels.triton import decode_layers as step
    from prosparse.kernels.triton import embed

    hidden, neurons, heads, kv_heads, head_dim, context = 64, 300, 4, 2, 16, 80
    rng = torch.Generator("cuda").manual_seed(0)

    def weight(rows, columns):
        return in_format(torch.randn(rows, columns, generator=rng, device="cuda") / columns**0.5, fmt)

    cache = torch.randn(2, 1, sequences, kv_heads, context, head_dim, generator=rng, device="cuda").bfloat16()
    angles = torch.randn(context, head_dim // 2, generator=rng, device="cuda")
    place = step.Place(
        cache[0], cache[1], angles, angles, torch.arange(sequences, dtype=torch.int32, device="cuda"),
        torch.full((sequences,), 70, dtype=torch.int32, device="cuda"), step.new_tickets(heads, cache[0], sequences),
    )  # fmt: skip
    norm, tally = torch.rand(hidden, generator=rng, device="cuda"), new_tally("cuda")
    ids = torch.arange(sequences, device="cuda")
    residual = embed.launch(ids, weight(50, hidden).codes, hidden, 1.0, place.tickets)
    qkv, o = weight((heads + 2 * kv_heads) * head_dim, hidden), weight(hidden, heads * head_dim)
    residual = step.attention(residual, 0, place, norm, qkv, None, o, 1e-5, 1.0, 0)
    glu = Glu(norm, *(weight(neurons, hidden) for _ in range(3)), Activation("relu"), dense)
    assert bool(step.ffn(residual, glu, 1e-5, 1.0, tally).isfinite().all())
    assert int(tally[0]) > 0
