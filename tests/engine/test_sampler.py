"""The sampler against transformers' own processors, and what it promises beyond them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prosparse.config import SamplingParams
from prosparse.engine.sampler import Sampler, penalize, survivors
from prosparse.errors import MachineError

NONE_SEEN = torch.tensor([], dtype=torch.int64)


def transformers_scores(logits: torch.Tensor, seen: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What transformers' generate would sample from, in its order of processors."""
    chain = [RepetitionPenaltyLogitsProcessor(params.repetition_penalty), TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    chain.append(MinPLogitsWarper(params.min_p))
    scores = logits[None].clone()
    for processor in chain:
        scores = processor(seen[None], scores)
    return scores[0]


def check_against_transformers(logits: torch.Tensor, seen: torch.Tensor, params: SamplingParams) -> None:
    expected = transformers_scores(logits, seen, params)
    scores = penalize(logits.numpy(), seen.numpy(), params.repetition_penalty) / np.float32(params.temperature)
    ids, probabilities = map(torch.from_numpy, survivors(scores, params))
    assert ids.tolist() == sorted(ids.tolist())
    possible = ids[probabilities > 0]
    assert possible.tolist() == (expected.softmax(0) > 0).nonzero().squeeze(1).tolist()
    dense = torch.zeros_like(logits).index_put((ids,), probabilities)
    torch.testing.assert_close(dense, expected.softmax(0), rtol=0, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    vocab=st.integers(1, 300),
    noise=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 50, 10_000]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
    penalty=st.sampled_from([1.0, 1.2, 0.7]),
    masked=st.booleans(),
)
def test_same_survivors_and_probabilities_as_transformers(
    vocab: int,
    noise: int,
    spread: float,
    top_k: int,
    top_p: float,
    min_p: float,
    temperature: float,
    penalty: float,
    masked: bool,
) -> None:
    generator = torch.Generator().manual_seed(noise)
    logits = torch.randn(vocab, generator=generator) * spread
    if masked:
        logits[1:][torch.rand(vocab - 1, generator=generator) < 0.5] = -math.inf
    seen = torch.randint(vocab, (7,), generator=generator)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    check_against_transformers(logits, seen, params)


@pytest.mark.parametrize("top_p", [0.95, 0.5, 0.001])
def test_real_vocabulary_agrees_with_transformers(top_p: float) -> None:
    logits = torch.randn(128_256, generator=torch.Generator().manual_seed(3)) * 3
    check_against_transformers(logits, NONE_SEEN, SamplingParams(temperature=0.7, top_p=top_p))


@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.9])
def test_ties_agree_with_transformers_up_to_which_of_them(top_p: float) -> None:
    """transformers sorts with an unstable sort, so of equal logits at the cut it keeps as many, but any."""
    logits = torch.randint(5, (64,), generator=torch.Generator().manual_seed(9)).float()
    params = SamplingParams(temperature=1.0, top_k=20, top_p=top_p)
    expected = transformers_scores(logits, NONE_SEEN, params).softmax(0)
    ids, probabilities = map(torch.from_numpy, survivors(logits.numpy(), params))
    assert len(set(ids.tolist())) == len(ids)
    torch.testing.assert_close(probabilities.sort().values, expected[expected > 0].sort().values, rtol=0, atol=1e-6)


def test_greedy_takes_the_first_maximum() -> None:
    sampler = Sampler(SamplingParams(), 5)
    assert sampler.choose(torch.tensor([0.0, 3.0, 3.0, -1.0, 3.0]), NONE_SEEN) == 1


def test_greedy_uses_the_repetition_penalty() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 3)
    logits = torch.tensor([3.0, 2.0, -4.0])
    assert sampler.choose(logits, torch.tensor([0, 0])) == 1  # 3 / 2 once, however often it was seen
    assert sampler.choose(logits, torch.tensor([2])) == 0
    assert logits.tolist() == [3.0, 2.0, -4.0]


@pytest.mark.parametrize("temperature", [1e-320, 1e-44, 1e-38, 1e-30])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=0.9, seed=0), 3)
    assert {sampler.choose(torch.tensor([0.0, 0.5, -80.0]), NONE_SEEN) for _ in range(20)} == {1}


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=11), 4)
    probabilities = torch.tensor([0.5, 0.3, 0.0, 0.2])
    draws = torch.tensor([sampler.choose(probabilities.log(), NONE_SEEN) for _ in range(4000)])
    frequencies = torch.bincount(draws, minlength=4) / 4000
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=0.03)  # 4 standard deviations
    assert frequencies[2] == 0


def test_extreme_draws_stay_among_possible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(SamplingParams(temperature=1.0), 4)
    logits = torch.tensor([-math.inf, 0.0, 0.0, -math.inf])
    for uniform, token in ((0.0, 1), (1.0, 2)):
        draw = torch.tensor(uniform, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *size, _draw=draw, **options: _draw)
        assert sampler.choose(logits, NONE_SEEN) == token


def test_same_seed_same_tokens_whatever_the_neighbours() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
    steps = torch.randn(30, 100, generator=torch.Generator().manual_seed(0))
    alone = Sampler(params, 100)
    expected = [alone.choose(row, NONE_SEEN) for row in steps]
    one, other = Sampler(params, 100), Sampler(SamplingParams(temperature=1.0, seed=6), 100)
    tokens, others = [], []
    for row in steps:
        others.append(other.choose(row, NONE_SEEN))
        tokens.append(one.choose(row, NONE_SEEN))
        torch.rand(3)  # the global generator plays no part
    assert tokens == expected
    assert others != expected


def test_a_drawn_seed_is_readable_and_repeats_the_run() -> None:
    first = Sampler(SamplingParams(temperature=1.0), 50)
    assert first.seed != Sampler(SamplingParams(temperature=1.0), 50).seed
    again = Sampler(SamplingParams(temperature=1.0, seed=first.seed), 50)
    logits = torch.zeros(50)
    assert [first.choose(logits, NONE_SEEN) for _ in range(20)] == [again.choose(logits, NONE_SEEN) for _ in range(20)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (math.nan, r"1 NaN and 0 \+inf of 4"),
        (math.inf, r"0 NaN and 1 \+inf of 4"),
    ],
)
def test_logits_that_are_not_finite_are_an_error(temperature: float, bad: float, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        Sampler(SamplingParams(temperature=temperature), 4).choose(torch.tensor([0.0, bad, 5.0, -math.inf]), NONE_SEEN)


def test_no_token_left_is_an_error() -> None:
    with pytest.raises(MachineError, match="all 3 logits are -inf"):
        Sampler(SamplingParams(), 3).choose(torch.full((3,), -math.inf), NONE_SEEN)


def test_a_penalty_that_overflows_is_named() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=1e-39), 2)
    with pytest.raises(MachineError, match="repetition_penalty=1e-39"):
        sampler.choose(torch.tensor([5.0, 1.0]), torch.tensor([0]))


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(1, 4), torch.zeros(4, dtype=torch.bfloat16)])
def test_wrong_logits_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"logits must be \[4\] float32"):
        Sampler(SamplingParams(), 4).choose(logits, NONE_SEEN)
