"""Conversations: what prompts have in common is read once, and every text is the one of a fresh start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from steps_by_hand import CalledAgain, DecoderStep
from tiny_engine import make_model, some_tokens

import prosparse
from prosparse import Conversation
from prosparse.engine import Engine
from prosparse.engine.graph import StepPool
from prosparse.engine.session import Session
from prosparse.kernels import cpu

OPTIONS = {"max_new_tokens": 10, "ignore_eos": True, "temperature": 0.9, "seed": 2}
needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference makes no bitwise promise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module", params=["bf16", "int4"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return prosparse.load(folder, weights=request.param, deterministic=True, context=200)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prefill read."""
    counts: list[int] = []
    real = Session.prefill

    def counted(self: Session, token_ids: torch.Tensor, *rest: int) -> Iterator[torch.Tensor]:
        counts.append(len(token_ids))
        return real(self, token_ids, *rest)

    monkeypatch.setattr(Session, "prefill", counted)
    return counts


def turn(engine: Engine, prompt: list[int], kept: Conversation | None, **options: object) -> tuple[str, dict]:
    return "".join(engine.stream(prompt, conversation=kept, **{**OPTIONS, **options})), engine.stats


def ids_of(engine: Engine, prompt: list[int], **options: object) -> list[int]:
    return list(engine.generate(prompt, **{**OPTIONS, **options}).token_ids)


@needs_kernels
def test_what_was_said_is_not_read_again(engine: Engine, read: list[int]) -> None:
    kept, prompt = Conversation(), some_tokens(40)
    for number in range(4):
        expected, fresh = turn(engine, prompt, None)
        answer = ids_of(engine, prompt)
        read.clear()
        text, stats = turn(engine, prompt, kept)
        assert text == expected
        cached = (
            0 if number == 0 else len(prompt) - 6
        )  # all but the latest token of the answer, and what was asked then
        assert stats["cached_tokens"] == cached and read == [len(prompt) - cached]
        assert stats["prefill_tokens"] == len(prompt) == fresh["prefill_tokens"] and fresh["cached_tokens"] == 0
        for key in ("activation_sparsity", "decode_tokens", "bytes_per_token"):
            assert stats[key] == fresh[key], "of this answer alone"
        prompt = [*prompt, *answer, *some_tokens(5, seed=number)]


@needs_kernels
@pytest.mark.parametrize("at", [0, 1, 17, 39, 44, 50])
def test_a_prompt_that_goes_another_way(engine: Engine, at: int) -> None:
    kept, prompt = Conversation(), some_tokens(40)
    turn(engine, prompt, kept)
    said = [*prompt, *ids_of(engine, prompt)]
    other = [*said[:at], *(token ^ 1 for token in said[at : at + 1]), *some_tokens(9, seed=5)]
    text, stats = turn(engine, other, kept)
    assert text == turn(engine, other, None)[0] and stats["cached_tokens"] == min(at, 49)


@needs_kernels
def test_the_same_prompt_again_reads_its_last_token(engine: Engine, read: list[int]) -> None:
    kept, prompt = Conversation(), some_tokens(30)
    first = turn(engine, prompt, kept)[0]
    assert turn(engine, prompt, kept)[0] == first and read == [30, 1]
    assert turn(engine, prompt[:12], kept)[0] == turn(engine, prompt[:12], None)[0] and read[2:] == [1, 12]


@needs_kernels
@pytest.mark.parametrize("pieces", [1, 4])
def test_an_answer_that_was_given_up_is_kept_as_far_as_it_came(engine: Engine, pieces: int) -> None:
    kept, prompt = Conversation(), some_tokens(30)
    stream = engine.stream(prompt, conversation=kept, **OPTIONS)
    for _ in range(pieces):
        next(stream)
    stream.close()
    longer = [*prompt, *ids_of(engine, prompt)]
    text, stats = turn(engine, longer, kept)
    assert text == turn(engine, longer, None)[0]
    assert 30 <= stats["cached_tokens"] < 39


@needs_kernels
def test_nothing_is_kept_of_a_run_that_failed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, prompt = Conversation(), some_tokens(40)
    turn(engine, prompt, kept)
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "prefill", lambda *given: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            turn(engine, [*prompt[:20], 9, 9, 9], kept)
    text, stats = turn(engine, prompt, kept)
    assert stats["cached_tokens"] == 0 and text == turn(engine, prompt, None)[0]


@needs_kernels
def test_with_prompt_lookup_and_after_a_full_context(engine: Engine) -> None:
    kept, prompt = Conversation(), some_tokens(10) * 4
    for options in ({"prompt_lookup": 5}, {"max_new_tokens": None}, {"prompt_lookup": 5}):
        assert turn(engine, prompt, kept, **options)[0] == turn(engine, prompt, None, **options)[0]
        prompt = [*prompt, *ids_of(engine, prompt)][:60]


def test_another_model_and_embeddings_begin_anew(engine: Engine, folder: Path) -> None:
    other, kept, prompt = prosparse.load(folder, weights="fp32", context=64), Conversation(), some_tokens(30)
    turn(engine, prompt, kept)
    text, stats = turn(other, prompt, kept)
    assert stats["cached_tokens"] == 0 and text == turn(other, prompt, None)[0]
    embeds = other.embed(prompt)
    assert "".join(other.stream(inputs_embeds=embeds, conversation=kept, **OPTIONS)) == text
    assert other.stats["cached_tokens"] == 0 and turn(other, prompt, kept)[1]["cached_tokens"] == 0
    kept.close()
    assert turn(other, prompt, kept)[1]["cached_tokens"] == 0 and turn(other, prompt, kept)[1]["cached_tokens"] == 29


def test_steps_that_run_ahead(folder: Path) -> None:
    plain = prosparse.load(folder, weights="fp32", deterministic=True, context=96)
    pool = StepPool(plain.decoder, plain.kv_dtype, DecoderStep, CalledAgain)
    ahead = Engine(
        plain.decoder, plain.tokenizer, plain.plan, plain.model_sampling, plain.kv_dtype, deterministic=True, pool=pool
    )
    kept, prompt = Conversation(), some_tokens(20)
    for number in range(3):
        text, stats = turn(ahead, prompt, kept, temperature=0)
        expected, fresh = turn(plain, prompt, None, temperature=0)
        assert text == expected or not cpu.available()
        assert stats["decode_tokens"] == fresh["decode_tokens"] and (stats["cached_tokens"] > 0) == (number > 0)
        prompt = [*prompt, *ids_of(plain, prompt, temperature=0), *some_tokens(3, seed=number)]
    kept.close()
    assert turn(ahead, prompt, None, temperature=0)[0] == turn(plain, prompt, None, temperature=0)[0]
