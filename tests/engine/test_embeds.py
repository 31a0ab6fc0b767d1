"""Prompts that are embeddings become what the same prompts become as token ids; others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engine import assert_logits_close, make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.engine.session import Session
from prosparse.errors import UserError

IDS = some_tokens(21, seed=6)


@pytest.fixture(scope="module", params=["llama", "minicpm"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = make_model(tmp_path_factory.mktemp("model") / "model", family=request.param)
    return prosparse.load(folder, weights="fp32")


def test_embeddings_of_tokens_become_the_text_of_the_tokens(engine: Engine) -> None:
    embeds = engine.embed(IDS)
    assert embeds.shape == (21, 64) and embeds.dtype == torch.float32
    kept = embeds.clone()
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    expected = engine.generate(IDS, **options)
    found = engine.generate(inputs_embeds=embeds, **options)
    assert (found.token_ids, found.text) == (expected.token_ids, expected.text) and torch.equal(embeds, kept)
    assert found.stats["prefill_tokens"] == 21
    several = engine.generate(inputs_embeds=[embeds, embeds[:5]], **options)
    assert [each.token_ids for each in several] == [engine.generate(ids, **options).token_ids for ids in (IDS, IDS[:5])]


def test_embeddings_are_what_the_first_layer_takes(engine: Engine) -> None:
    """MiniCPM scales those of tokens; what a vision tower made between them gets no scale."""
    table = engine.decoder.embed.values()
    assert torch.equal(engine.embed([5, 7]), table[[5, 7]] * engine.config.embed_scale)
    embeds = engine.embed(IDS)
    embeds[3:9] = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    sessions = [Session(engine.decoder, engine.kv_dtype, 1, 64) for _ in range(2)]
    whole = torch.cat(list(sessions[0].prefill(embeds)))
    parts = torch.cat(list(sessions[1].prefill(embeds, chunk=4)))
    assert_logits_close(parts, whole, "chunks of 4")
    first = engine.generate(inputs_embeds=embeds, max_new_tokens=1, ignore_eos=True).token_ids[0]
    assert first == int(engine.decoder.logits(whole[-1:])[0].argmax())
    assert engine.generate(inputs_embeds=embeds.bfloat16(), max_new_tokens=2).token_ids


def test_streams_like_it_generates(engine: Engine) -> None:
    embeds = engine.embed(IDS)
    expected = engine.generate(inputs_embeds=embeds, max_new_tokens=12, ignore_eos=True)
    pieces = list(engine.stream(inputs_embeds=embeds, max_new_tokens=12, ignore_eos=True))
    assert "".join(pieces) == expected.text and engine.stats["decode_tokens"] == 11
    for given in ({}, {"prompt": "a", "inputs_embeds": embeds}):
        with pytest.raises(UserError, match="stream: pass either a prompt or inputs_embeds"):
            engine.stream(**given)
    with pytest.raises(UserError, match="stream: takes one prompt, got a list"):
        engine.stream(inputs_embeds=[embeds])


def test_a_penalty_on_what_was_generated(engine: Engine) -> None:
    """The prompt has no ids to be repeated, as in transformers."""
    options: dict[str, Any] = {"max_new_tokens": 8, "repetition_penalty": 1e4, "ignore_eos": True}
    tokens = engine.generate(inputs_embeds=engine.embed(IDS), **options).token_ids
    assert len(set(tokens)) == 8


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a width": ({"inputs_embeds": torch.zeros(4, 63)}, r"0 must be a tensor \[tokens, 64\].*got float32 \[4, 63\]"),
    "one row": ({"inputs_embeds": torch.zeros(64)}, r"got float32 \[64\]"),
    "a batch": ({"inputs_embeds": torch.zeros(1, 4, 64)}, r"got float32 \[1, 4, 64\]"),
    "ids": ({"inputs_embeds": torch.zeros(4, 64, dtype=torch.int64)}, r"got int64 \[4, 64\]; `engine.embed"),
    "no tensor": ({"inputs_embeds": "abc"}, "0 must be a tensor .* got str"),
    "a sparse tensor": ({"inputs_embeds": torch.zeros(4, 64).to_sparse()}, "got torch.sparse_coo"),
    "NaN": ({"inputs_embeds": [torch.zeros(4, 64), torch.full((4, 64), float("nan"))]}, "1 has NaN or inf"),
    "no tokens": ({"inputs_embeds": torch.zeros(0, 64)}, "0 has 0 tokens, expected from 1 to 511"),
    "too many": ({"inputs_embeds": torch.zeros(512, 64)}, "has 512 tokens.*raise --context"),
    "nothing": ({}, "pass either a prompt or inputs_embeds"),
    "both": ({"prompt": "a", "inputs_embeds": torch.zeros(4, 64)}, "pass either a prompt or inputs_embeds"),
    "an empty list": ({"inputs_embeds": []}, "no prompt was given"),
}  # fmt: skip


@pytest.mark.parametrize("title", WRONG)
def test_says_what_is_wrong(title: str, engine: Engine) -> None:
    given, message = WRONG[title]
    with pytest.raises(UserError, match=message):
        engine.generate(**given)


def test_embeddings_do_not_touch_the_ones_given(tmp_path: Path) -> None:
    embeds = torch.ones(3, 64, requires_grad=True)
    engine = prosparse.load(make_model(tmp_path / "model"), weights="fp32")
    engine.generate(inputs_embeds=embeds, max_new_tokens=1)
    assert torch.equal(embeds, torch.ones(3, 64))
