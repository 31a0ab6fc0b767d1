"""Prompt lookup: whatever is drafted, the text is the one that steps of single tokens write."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from placed_plans import placed, some_profile
from tiny_engine import make_model

import prosparse
from prosparse.config import SamplingParams
from prosparse.engine import Engine, Generation, request
from prosparse.engine.lookup import COSTS, OUTLIER, PRIOR, Costs, Draft, Lookup, best_length
from prosparse.engine.request import Request
from prosparse.engine.session import Session
from prosparse.kernels import cpu

STORY_MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"
PROMPT = "Once upon a time there was a little dog. The dog was happy. Once upon a time there was a little dog."
OPTIONS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_k": 20, "seed": 4},
    "penalized": {"repetition_penalty": 1.2},
    "stopped": {"stop": ("day", "zz")},
    "to the end of a sequence": {"ignore_eos": False},
}
BF16 = Costs("bf16")
needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference makes no bitwise promise")


class Guess(Lookup):
    """Drafts that are right by chance, of a text that is known."""

    def __init__(self, text: Sequence[int], right: float, seed: int = 0) -> None:
        super().__init__(())
        self.text, self.right, self.random, self.pushed = text, right, random.Random(seed), 0

    def push(self, token: int) -> None:
        self.pushed += 1

    def draft(self, most: int) -> Draft:
        coming = self.text[self.pushed :][:most]
        return Draft([t if self.random.random() < self.right else 5 for t in coming], 0.99, 2)


@pytest.fixture(scope="module", params=["dense", "exact"])
def story(request: pytest.FixtureRequest) -> Engine:
    return prosparse.load(STORY_MODEL, mode=request.param, deterministic=True)  # no clock decides what is tried


def continued(engine: Engine, prompt: object = PROMPT, **options: object) -> Generation:
    return engine.generate(prompt, **{"max_new_tokens": 40, "ignore_eos": True, **options})


def with_drafts(engine: Engine, monkeypatch: pytest.MonkeyPatch, right: float, text: Sequence[int], **options: object):
    with monkeypatch.context() as patch:
        patch.setattr(request, "Lookup", lambda ids: Guess(text, right))
        return continued(engine, prompt_lookup=15, **options)


@needs_kernels
@pytest.mark.parametrize("name", OPTIONS)
def test_the_text_is_the_same_and_comes_in_fewer_steps(story: Engine, name: str) -> None:
    expected = continued(story, **OPTIONS[name])
    for most in (1, 3, 15):
        found = continued(story, **OPTIONS[name], prompt_lookup=most)
        assert (found.token_ids, found.text, found.finish_reason) == (
            expected.token_ids, expected.text, expected.finish_reason,
        )  # fmt: skip
        counts = found.stats["prompt_lookup"]
        assert 0 <= counts["accepted"] <= counts["drafted"]
    assert expected.stats["prompt_lookup"] is None
    options = {"max_new_tokens": 40, "ignore_eos": True, **OPTIONS[name], "prompt_lookup": 15}
    assert "".join(story.stream(PROMPT, **options)) == expected.text


@needs_kernels
@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_drafts_leave_no_trace(story: Engine, monkeypatch: pytest.MonkeyPatch, name: str, right: float) -> None:
    expected = continued(story, **OPTIONS[name])
    found = with_drafts(story, monkeypatch, right, expected.token_ids, **OPTIONS[name])
    assert found.token_ids == expected.token_ids and found.text == expected.text
    counts = found.stats["prompt_lookup"]
    assert counts["drafted"] > 12
    assert (counts["accepted"] == counts["drafted"]) == (right == 1.0) and (counts["accepted"] > 0) == (right > 0)


@needs_kernels
@pytest.mark.parametrize("family", ["minicpm", "bamboo"])
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_families_and_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, weights: str) -> None:
    window = {"sliding_window": 9} if family == "bamboo" else {}
    engine = prosparse.load(make_model(tmp_path / "m", family=family, **window), weights=weights, deterministic=True)
    expected = continued(engine, [1, 5, 6, 7] * 5)
    found = with_drafts(engine, monkeypatch, 0.7, expected.token_ids, prompt=[1, 5, 6, 7] * 5)
    assert found.token_ids == expected.token_ids and found.stats["prompt_lookup"]["accepted"] > 0


@needs_kernels
def test_a_model_on_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers shared by neuron, on the slow device alone, and on the fast one."""
    folder, prompt = make_model(tmp_path / "m", layers=3), [1, 5, 6, 7] * 5
    whole = prosparse.load(folder, weights="fp32")
    profile, n = some_profile(whole), whole.config.neurons
    plan = placed(whole, profile, [(n, 32), (0, 0, False), (n, n)], context=96)
    engine = prosparse.load(folder, plan=plan, profile=profile, device="cpu")
    monkeypatch.setattr(Costs, "learn", lambda *given: None)
    expected = continued(engine, prompt)
    found = with_drafts(engine, monkeypatch, 0.7, expected.token_ids, prompt=prompt)
    assert found.token_ids == expected.token_ids and found.stats["prompt_lookup"]["accepted"] > 0


@needs_kernels
def test_prompts_of_a_batch_keep_their_texts(story: Engine) -> None:
    prompts = [PROMPT, "The cat", "A red ball. " * 9, *(f"Day {n}. Day {n}. Day" for n in range(14))]
    alone = [continued(story, prompt).token_ids for prompt in prompts]
    for count in (2, 3, 17):
        together = continued(story, prompts[:count], prompt_lookup=15)
        assert [each.token_ids for each in together] == alone[:count]
        if count < 9:  # else no row is left for drafts
            assert together[0].stats["prompt_lookup"]["accepted"] > 0


@needs_kernels
def test_at_the_end_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that would not fit are not tried, and the last position is still used."""
    for context in range(36, 44):
        engine = prosparse.load(STORY_MODEL, context=context, deterministic=True)
        expected = continued(engine, max_new_tokens=None)
        found = with_drafts(engine, monkeypatch, 1.0, expected.token_ids, max_new_tokens=None)
        assert found.token_ids == expected.token_ids and found.finish_reason == "length"
        assert found.stats["prefill_tokens"] + len(found.token_ids) == context


@needs_kernels
def test_embeddings_have_no_ids_to_look_up_but_their_text_has(story: Engine) -> None:
    embeds = story.embed(story.tokenizer.encode(PROMPT))
    options = {"max_new_tokens": 40, "ignore_eos": True}
    expected = story.generate(inputs_embeds=embeds, **options)
    assert story.generate(inputs_embeds=embeds, **options, prompt_lookup=5).token_ids == expected.token_ids


@needs_kernels
def test_stats_are_of_the_text(story: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = continued(story)
    right = with_drafts(story, monkeypatch, 1.0, expected.token_ids).stats
    wrong = with_drafts(story, monkeypatch, 0.0, expected.token_ids).stats
    assert right["decode_tokens"] == wrong["decode_tokens"] == 39
    # right drafts share reads, wrong ones only add the rows that they open
    assert right["bytes_per_token"] < expected.stats["bytes_per_token"] / 2
    assert wrong["bytes_per_token"] >= expected.stats["bytes_per_token"]
    if story.plan.layers[0].mode == "exact":
        assert wrong["bytes_per_token"] < 1.8 * expected.stats["bytes_per_token"]
    assert 0 < right["activation_sparsity"]["mean"] < 1


def test_steps_that_failed_raise_as_without(story: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row behind a wrong draft is never looked at: what it would say is no token of the text."""
    real = Session.decode
    rows: list[int] = []

    def poisoned(self: Session, ids: torch.Tensor, slots: tuple[int, ...], starts: tuple[int, ...]) -> torch.Tensor:
        logits = real(self, ids, slots, starts)
        rows.append(len(logits))
        logits[1:] = torch.nan
        return logits

    expected = continued(story)
    monkeypatch.setattr(Session, "decode", poisoned)
    found = with_drafts(story, monkeypatch, 0.0, expected.token_ids)
    assert len(found.token_ids) == 40 and max(rows) > 1


def test_the_longest_and_latest_match_is_drafted() -> None:
    lookup = Lookup([1, 2, 3, 4, 9, 2, 3, 4, 7, 8, 3, 4])
    assert lookup.draft(3).tokens == [7, 8, 3] and lookup.draft(3).length == 2
    assert Lookup([5, 2, 3, 4, 9, 1, 3, 4, 7, 2, 3, 4]).draft(2).tokens == [9, 1], "three in a row go before two"
    assert Lookup([1, 2, 3]).draft(4).tokens == () and Lookup([]).draft(4).tokens == ()


def test_a_draft_that_reaches_the_end_repeats_itself() -> None:
    assert Lookup([6, 1, 2, 1, 2, 1, 2]).draft(5).tokens == [1, 2, 1, 2, 1]
    assert Lookup([7, 7, 7]).draft(4).tokens == [7, 7, 7, 7]


def test_an_index_that_grows_is_that_of_the_whole() -> None:
    rng = random.Random(0)
    ids = [rng.randrange(4) for _ in range(200)]
    grown = Lookup(ids[:10])
    for i in range(10, 200):
        assert grown.draft(6) == Lookup(ids[:i]).draft(6)
        grown.push(ids[i])


def test_what_is_never_right_is_no_longer_tried_and_comes_back_when_it_is() -> None:
    lookup = Lookup([1, 2, 3, 4] * 8)
    tried = []
    for _ in range(40):
        draft = lookup.draft(7)
        tried.append(best_length([draft], 7, BF16))
        lookup.judge(draft, [99], tried[-1])
    assert tried[0] > 0 and tried[-1] == 0 and lookup.accepted == 0 and lookup.drafted == sum(tried)
    for _ in range(40):
        draft = lookup.draft(7)
        count = best_length([draft], 7, BF16)
        lookup.judge(draft, [*draft.tokens[:count], draft.tokens[count] if count < 7 else 99], count)
    assert count > 2, "drafts that were not tried were judged as well"
    assert lookup.accepted > 0


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (0.12, 0), (0.3, 1), (1.0, 3)])
def test_how_many_are_tried(rate: float, expected: int) -> None:
    assert best_length([Draft([1] * 15, rate, 2)], 3, BF16) == expected


def test_a_batch_is_weighed_as_a_whole() -> None:
    sure, none = Draft([1] * 15, 0.95, 2), Draft()
    assert best_length([sure], 15, BF16) > 0
    assert best_length([sure, none, none, none], 3, BF16) == 0, "three rows in vain for each that helps"
    assert best_length([none], 15, BF16) == 0 and best_length([sure], 0, BF16) == 0
    assert best_length([Draft([1] * 15, PRIOR, 2)], 15, BF16) >= 1


@pytest.mark.parametrize("weights", [*COSTS, "fp32"])
def test_costs_grow_and_stay_below_those_of_single_steps(weights: str) -> None:
    costs = [Costs(weights)(tokens) for tokens in range(1, 17)]
    assert costs == sorted(costs) and costs[0] == 1.0 and all(c <= n for n, c in enumerate(costs, start=1))


def test_costs_are_those_of_this_machine_once_steps_were_timed() -> None:
    costs = Costs("bf16")
    costs.learn(1, 0.1)
    assert costs(1) == pytest.approx(0.1) and costs(4) == pytest.approx(0.1 * COSTS["bf16"][4]), "in proportion"
    for _ in range(30):
        costs.learn(4, 0.4)
        costs.learn(1, 0.1)
    assert costs(4) == pytest.approx(0.4, rel=0.05) and costs(1) == pytest.approx(0.1)
    assert best_length([Draft([1] * 15, 0.9, 2)], 3, costs) <= 1, "four tokens for the time of four steps"


def test_a_step_that_was_held_up_is_no_measure_for_good() -> None:
    sure = [Draft([1] * 15, 0.9, 2)]
    for earlier in (0, 20):
        costs = Costs("bf16")
        for _ in range(max(earlier, 1)):
            costs.learn(1, 0.1)
        for _ in range(earlier):
            costs.learn(4, 0.1 * COSTS["bf16"][4])
        costs.learn(4, 60.0)
        assert costs(4) < 0.1 * COSTS["bf16"][4] * OUTLIER * 1.1
        for _ in range(300):
            costs.learn(1, 0.1)
        assert costs(4) == pytest.approx(0.1 * COSTS["bf16"][4]), "it is forgotten, and tried again"
        assert best_length(sure, 3, costs) == 3


def test_costs_that_must_not_depend_on_the_clock() -> None:
    fixed = Costs("int4", learns=False)
    fixed.learn(4, 9.0)
    assert fixed(4) == COSTS["int4"][4]


def test_requests_say_what_they_may_still_write(story: Engine) -> None:
    params = SamplingParams(max_new_tokens=3, prompt_lookup=15)
    asked = Request([1, 7, 8, 9, 7, 8], params, story.tokenizer, 64, story.config.vocab)
    assert len(asked.draft().tokens) == 2, "the step itself brings one"
