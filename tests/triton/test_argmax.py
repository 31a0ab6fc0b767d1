"""The greedy choice on the device is the sampler's. Runs on a GPU, or in the interpreter's process."""

from __future__ import annotations

import os

import pytest
import torch
from cases import poison_allocator
from triton_backend import gpu_backends

from prosparse.config import SamplingParams
from prosparse.engine.sampler import Sampler

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from prosparse.kernels.triton import argmax  # noqa: E402

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAN, INF = float("nan"), float("inf")
VOCAB = 5000  # three spans, the last not full


def chosen(logits):
    """(tokens, their logits), the poison of the workspace not among them."""
    poison_allocator()
    tokens, top = argmax.launch(logits.to(DEVICE))
    return tokens.cpu(), top.cpu()


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 31), (2, 2048), (16, 2049), (1, VOCAB)])
def test_it_is_what_the_sampler_chooses(rows, vocab):
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[:, ::3] = -INF  # forbidden tokens
    logits[0, 0] = 0.5
    logits[-1] -= 100  # all below zero
    logits[:, vocab // 2] = 0.1
    tokens, top = chosen(logits)
    sampler, nothing = Sampler(SamplingParams(), vocab), torch.empty(0, dtype=torch.int64)
    assert tokens.tolist() == [sampler.choose(row, nothing) for row in logits]
    assert torch.equal(top, logits.gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize(
    ("special", "token"),
    [
        ({7: 9.0, 2047: 9.0, 2048: 9.0, 4999: 9.0}, 7),  # ties, within a span and across
        ({4999: 9.0, 2048: 9.0}, 2048),
        ({3: -0.0, 4: 0.0}, 3),
        ({4: 0.0, 4500: -0.0}, 4),
        ({2: INF, 2500: NAN, 4000: NAN}, 2500),  # NaN above infinity, the first of several
        ({2500: -NAN, 4000: INF}, 2500),
        ({4000: INF, 4001: INF}, 4000),
    ],
    ids=str,
)
def test_ties_zeros_and_what_is_not_finite(special, token):
    logits = torch.full((2, VOCAB), -1.0)
    for at, value in special.items():
        logits[1, at] = value
    tokens, top = chosen(logits)
    expected, index = logits.max(dim=-1)
    assert tokens.tolist() == index.tolist() == [0, token]
    torch.testing.assert_close(top, expected, rtol=0, atol=0, equal_nan=True)


def test_nothing_allowed_and_rows_apart():
    logits = torch.full((3, VOCAB + 10), NAN)[:, :VOCAB]
    logits[:] = -INF
    logits[1, 4321] = -3.0
    tokens, top = chosen(logits)
    assert tokens.tolist() == [0, 4321, 0] and top.tolist() == [-INF, -3.0, -INF]
