"""A tokenizer for a vocabulary without meaning: a token per byte for what goes in, made-up words for what comes out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from ...config import ModelConfig
from ...errors import UserError

SPECIALS = ("<unk>", "<s>", "</s>")
SYLLABLES = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no UTF-8 text holds


def write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        folder: exists.
        config: its vocabulary is filled to the last id; ids 0 to 2 are specials.

    Raises:
        UserError: a vocabulary too small for the bytes of a text.
    """
    letters = _byte_letters()
    tokens = [*SPECIALS, *(letters[byte] for byte in range(256) if byte not in NEVER)]
    if config.vocab < len(tokens):
        raise UserError(
            f"synthetic: a vocabulary of {config.vocab} has no room for a tokenizer, which needs {len(tokens)} tokens"
        )
    words = ("".join(parts) for length in itertools.count(2) for parts in itertools.product(SYLLABLES, repeat=length))
    space = letters[ord(" ")]
    tokens += [space + word for word in itertools.islice(words, config.vocab - len(tokens))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    begin = {"SpecialToken": {"id": SPECIALS[1], "type_id": 0}}
    plan = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(number, name) for number, name in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SPECIALS[1]: {"id": SPECIALS[1], "ids": [1], "tokens": [SPECIALS[1]]}},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": []},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **dict(zip(("unk_token", "bos_token", "eos_token"), SPECIALS, strict=True)),
    }
    (folder / "tokenizer.json").write_text(json.dumps(plan, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _special(number: int, name: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}
