"""Pieces that join to the decoding of the whole, and never show a part of a character."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from trained_tokenizers import model_config

from prosparse.engine.detokenize import LONGEST_WINDOW, Detokenizer
from prosparse.engine.tokenizer import Tokenizer

LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
KINDS = {"byte_level": None, "sentencepiece": None, "llama": LLAMA}  # the last: transformers' rebuilt decoder


@pytest.fixture(scope="module")
def tokenizers(backends: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    made = {}
    for kind, given_settings in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        backend = backends["byte_level" if kind == "byte_level" else "sentencepiece"]
        (folder / "tokenizer.json").write_text(backend, encoding="utf-8")
        if given_settings is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(given_settings))
        made[kind] = Tokenizer.load(folder, model_config(1000))
    return made


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_decoding(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    """Random ids: long runs of bytes that are no characters, special tokens, ids without a token."""
    tokenizer = tokenizers[kind]
    one_byte = sorted(tokenizer.byte_ids) or [i for i in range(3, 259) if tokenizer.decode([i]) == "\ufffd"]
    pools = [st.integers(0, 520), st.sampled_from(one_byte), st.sampled_from([*one_byte[-64:], 0, 1, 2])]
    one = data.draw(st.sampled_from([st.one_of(pools), *pools[1:]]))
    ids = data.draw(st.lists(one, max_size=60))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab  .\n<é你好😀👍🏽\u200d\ufffd▁"), max_size=25))
def test_texts_come_back_in_whole_characters(tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    pieces = pieces_of(tokenizer, ids)
    whole = tokenizer.decode(ids)
    assert "".join(pieces) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(("kind", "expected"), [("byte_level", "a|😀| |b"), ("sentencepiece", "a|😀 |b")])
def test_a_character_appears_once_it_is_complete(tokenizers: dict[str, Tokenizer], kind: str, expected: str) -> None:
    pieces = pieces_of(tokenizers[kind], tokenizers[kind].encode("a😀 b", add_special=False))
    assert "|".join(piece for piece in pieces if piece) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_character_comes_out_as_replacement(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("a😀", add_special=False)[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push(i) for i in ids) == "a"
    assert detokenizer.flush() == tokenizer.decode(ids)[1:]
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_does_not_grow(
    tokenizers: dict[str, Tokenizer], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over ordinary text, and over bytes that never form a character."""
    tokenizer = tokenizers[kind]
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    stray = tokenizer.encode("😀", add_special=False)[-2]
    ids = tokenizer.encode("The quick brown fox 你好. ", add_special=False) * 50 + [stray] * 500
    assert "".join(pieces_of(tokenizer, ids)) == decode(ids)
    assert sum(decoded) < len(ids) * (LONGEST_WINDOW + 4)


@pytest.mark.parametrize("strays", range(10, 20))
def test_a_character_after_a_long_run_of_stray_bytes(tokenizers: dict[str, Tokenizer], strays: int) -> None:
    """Wherever in the character the window is cut."""
    tokenizer = tokenizers["byte_level"]
    vocabulary = tokenizer._backend.get_vocab()
    ids = [vocabulary["Ģ"]] * strays + [vocabulary[byte] for byte in "ðŁĺĢ"]  # 0x80s, then the four bytes of an emoji
    assert tokenizer.decode(ids) == "\ufffd" * strays + "😀"
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_run_of_bytes_waits_for_its_end(tokenizers: dict[str, Tokenizer], backends: dict[str, str]) -> None:
    """An invalid byte at the end of a run changes the whole run, as in the tokenizers library."""
    tokenizer = tokenizers["sentencepiece"]
    backend = Backend.from_str(backends["sentencepiece"])
    run = [backend.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xff"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(i) for i in run] == ["", "", ""]
    assert detokenizer.push(backend.token_to_id("a")) == "\ufffd\ufffd\ufffda"
