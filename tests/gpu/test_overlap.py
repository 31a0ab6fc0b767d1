"""Graphs whose launches overlap, against the same without. `make test-gpu` needs a GPU; elsewhere these are skipped."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import prosparse
from prosparse.engine.graph import StepPool
from prosparse.model.step import DeviceStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="no CUDA device of 9.0 here",
    ),
]


@torch.inference_mode()
def steps_of(engine, overlap, sequences):
    """A step pool's steps at the start of random caches, as far as they write the same."""
    pool = StepPool(engine.decoder, engine.kv_dtype, partial(DeviceStep, overlap=overlap))
    steps = pool.lend(sequences, 256)
    for part in (steps.cache.keys, steps.cache.values):
        part.normal_(generator=torch.Generator("cuda").manual_seed(0))
    ids, slots = torch.arange(5, 5 + sequences), tuple(range(sequences))
    assert steps.begin(ids, slots, tuple(10 + slot for slot in slots))
    return steps


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("mode", ["dense", "exact"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_two_hundred_tokens_have_the_same_bits(sequences, mode, weights):
    engine = prosparse.load(mode=mode, weights=weights, device="cuda")
    one, other = (steps_of(engine, overlap, sequences) for overlap in (False, True))
    for number in range(200):
        for steps in (one, other):
            steps.launch()
        assert torch.equal(one.logits, other.logits), f"token {number}"
        assert one.read(number) == other.read(number)
    assert torch.equal(one.tally, other.tally) and int(one.tally.sum()) > 0
    for kept in ("keys", "values"):
        assert torch.equal(getattr(one.cache, kept), getattr(other.cache, kept))


@pytest.mark.parametrize("overlap", [False, True])
def test_many_tokens_without_the_host_looking(overlap):
    """Nothing but the next step follows a step: what races would show here."""
    engine = prosparse.load(mode="exact", device="cuda")
    ends = []
    for _ in range(3):
        steps = steps_of(engine, overlap, 1)
        for _ in range(200):
            steps.launch()
        ends.append((steps.logits.clone(), steps.tally.clone()))
    assert all(torch.equal(part, first) for end in ends[1:] for part, first in zip(end, ends[0], strict=True))
