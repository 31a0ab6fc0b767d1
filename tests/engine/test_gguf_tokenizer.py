"""Tokenizers made from the keys of a GGUF file give the ids and texts of the ones the keys were taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from trained_tokenizers import TEXTS, byte_level, model_config, sentencepiece_like

from prosparse.engine.gguf_tokenizer import load_gguf_tokenizer
from prosparse.engine.tokenizer import Tokenizer as Ours
from prosparse.errors import TokenizerError
from prosparse.weights.gguf import GgufFile

SAMPLES = [*TEXTS, "", " ", "  two  spaces ", "it's 12345 o'clock\n\n", "</s> is text", "naïve café ☃", "aaaaaaaa bbbb"]


def keys_of(tokenizer: Tokenizer, kind: str, **changes: Any) -> dict[str, Any]:
    """What a converter writes: SentencePiece has scores, from which the order of merges follows."""
    plan = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {token["content"]: token for token in plan["added_tokens"]}
    types = [1 if token not in added else 3 if added[token]["special"] else 4 for token in tokens]
    keys = {"model": kind, "tokens": tokens, "token_type": types, "bos_token_id": 1, "eos_token_id": 2}
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in plan["model"]["merges"]]
    if kind == "llama":
        rank = {}
        for number, pair in enumerate(pairs):
            rank.setdefault("".join(pair), number)
        keys |= {"scores": [-float(rank.get(token, 10**6)) for token in tokens], "unknown_token_id": 0}
    else:
        keys["merges"] = [" ".join(pair) for pair in pairs]
    return {f"tokenizer.ggml.{key}": item for key, item in (keys | changes).items() if item is not None}


def load(keys: dict[str, Any]) -> Any:
    return load_gguf_tokenizer(GgufFile(Path("x.gguf"), "GGUF", keys, {}, 0))


def assert_same(found: Tokenizer, expected: Tokenizer, text: str) -> None:
    for each in (found, expected):
        each.encode_special_tokens = True
    ids = expected.encode(text).ids
    assert found.encode(text).ids == ids, text
    assert found.decode(ids) == expected.decode(ids)


@pytest.mark.parametrize("text", SAMPLES)
def test_bpe_over_bytes(text: str) -> None:
    expected = byte_level()
    assert_same(load(keys_of(expected, "gpt2")).backend_tokenizer, expected, text)


LLAMA = sentencepiece_like()
FROM_SCORES = load(keys_of(LLAMA, "llama")).backend_tokenizer


@given(st.sampled_from(SAMPLES) | st.text(alphabet="the doga 你好é😀\n.<>", max_size=40))
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_sentencepiece(text: str) -> None:
    """Where a training merged several pairs into one token, the score of that token is all that is left of their order;
    SentencePiece itself has no more than that."""
    scored = json.loads(LLAMA.to_str())
    scored["model"]["merges"] = json.loads(FROM_SCORES.to_str())["model"]["merges"]
    assert_same(FROM_SCORES, Tokenizer.from_str(json.dumps(scored)), text)
    assert LLAMA.decode(FROM_SCORES.encode(text).ids).strip() == text.strip()


def test_sentencepiece_on_what_it_was_trained_on() -> None:
    for text in TEXTS:
        assert_same(FROM_SCORES, LLAMA, text)


def test_frame_and_special_tokens() -> None:
    config = model_config(vocab=480)
    keys = keys_of(LLAMA, "llama")
    ours = Ours(load(keys), config, Path("x.gguf"))
    assert (ours.bos_id, ours.eos_ids) == (1, {2}) and len(ours.byte_ids) == 256
    assert ours.encode("the dog")[0] == 1 and 2 not in ours.encode("</s>")
    bare = Ours(load(keys | {"tokenizer.ggml.add_bos_token": False}), config, Path("x.gguf"))
    assert bare.encode("the dog") == ours.encode("the dog")[1:]
    closed = Ours(load(keys | {"tokenizer.ggml.add_eos_token": True}), config, Path("x.gguf"))
    assert closed.encode("the dog") == [*ours.encode("the dog"), 2]
    tight = Ours(load(keys | {"tokenizer.ggml.add_space_prefix": False}), config, Path("x.gguf"))
    assert tight.decode(tight.encode("the dog")) == "the dog" and tight.encode("the dog") != ours.encode("the dog")


def test_chat_template() -> None:
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    ours = Ours(
        load(keys_of(LLAMA, "llama") | {"tokenizer.chat_template": template}), model_config(vocab=480), Path("x")
    )
    assert ours.decode(ours.chat([{"role": "user", "content": "the dog"}])) == "[the dog]"


@pytest.mark.parametrize(("rule", "digits"), [("llama-bpe", "{1,3}"), ("qwen2", "")])
def test_words_of_later_models(rule: str, digits: str) -> None:
    """Their published tokenizer.json: a split, then bytes; Llama 3 takes a word that is a token without merging."""
    expected = byte_level()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    plan = json.loads(expected.to_str())
    if rule == "llama-bpe":
        plan["model"]["ignore_merges"] = True
        expected = Tokenizer.from_str(json.dumps(plan))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    expected.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    found = load(keys_of(expected, "gpt2", pre=rule, add_bos_token=False)).backend_tokenizer
    for text in SAMPLES:
        assert_same(found, expected, text)
    has_bos = load(keys_of(expected, "gpt2", pre=rule)).backend_tokenizer.encode("a").ids[0] == 1
    assert has_bos == (rule == "llama-bpe")


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no kind": ("llama", {"model": None}, "tokenizer.ggml.model must be given"),
    "another kind": ("llama", {"model": "t5"}, "'llama' or 'gpt2', which are read, got 't5'"),
    "no tokens": ("llama", {"tokens": []}, "tokens that differ"),
    "tokens twice": ("llama", {"tokens": ["a", "a"]}, "tokens that differ"),
    "tokens that are numbers": ("llama", {"tokens": [1, 2]}, "tokens must be an array of texts"),
    "too few scores": ("llama", {"scores": [0.5]}, "scores must be one number for each of"),
    "no scores": ("llama", {"scores": None}, "scores must be an array of numbers, got no such key"),
    "scores that are no numbers": ("llama", {"scores": [float("nan")] * 448}, "scores must be finite numbers"),
    "types of other tokens": ("llama", {"token_type": [1]}, "token_type must be one number for each of"),
    "an end beyond the tokens": ("llama", {"eos_token_id": 9999}, "eos_token_id must be below the number of tokens"),
    "no merges": ("gpt2", {"merges": None}, "merges must be an array of texts"),
    "a merge of one": ("gpt2", {"merges": ["ab"]}, "merges holds 'ab'.*expected two tokens with a space between"),
    "a merge of no tokens": ("gpt2", {"merges": ["a zzz"]}, r"tokenizer.ggml.\* cannot be used \(.*zzz"),
    "words of another model": ("gpt2", {"pre": "viking"}, "pre must be one of gpt-2, qwen2, llama-bpe"),
}


@pytest.mark.parametrize("title", WRONG)
def test_says_which_key_is_wrong(title: str) -> None:
    kind, changes, message = WRONG[title]
    tokenizer = LLAMA if kind == "llama" else byte_level()
    with pytest.raises(TokenizerError, match=message):
        load(keys_of(tokenizer, kind, **changes))
