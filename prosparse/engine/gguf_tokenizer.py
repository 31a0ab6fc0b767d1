"""The tokenizer of a GGUF file, built from its keys in the `tokenizers` library.

Two kinds are read: "llama", SentencePiece's BPE, whose merges follow from the scores of the tokens, and "gpt2", BPE
over bytes with merges of its own, whose rule for cutting text into words has a name in tokenizer.ggml.pre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..config.fields import Fields, finite, show
from ..errors import TokenizerError
from ..weights.gguf import GgufFile
from .tokenizer_files import importing

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SPACE = "▁"
# Rules that the models' own tokenizer.json files publish; they differ in how many digits stay together.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
# None is the rule of the library's ByteLevel, which is GPT-2's, and the only one there was when files named none
RULES: dict[str, str | None] = {"gpt-2": None, "qwen2": WORDS.replace("DIGITS", "")}
RULES |= dict.fromkeys(LLAMA3, WORDS.replace("DIGITS", "{1,3}"))


class _Keys(Fields):
    """The keys of a file that are about its tokenizer."""

    def wrong(self, key: str, expected: str) -> TokenizerError:  # type: ignore[override]
        return TokenizerError(str(super().wrong(key, expected)) + "; use a file that was converted with its tokenizer")

    def items(self, key: str, kind: type | tuple[type, ...], count: int | None = None) -> list[Any]:
        """An array of one type, of `count` items if that is given."""
        values = self.data.get(key)
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise self.wrong(key, "an array of texts" if kind is str else "an array of numbers")
        if count is not None and len(values) != count:
            raise self.wrong(key, f"one number for each of {count} tokens")
        return values


def load_gguf_tokenizer(file: GgufFile) -> Any:
    """transformers' tokenizer for a file, with its special tokens and chat template.

    Raises:
        TokenizerError: keys that are missing, contradict each other, or name a kind that is not read.
    """
    keys = _Keys(file.metadata, str(file.path))
    kind = keys.text("tokenizer.ggml.model")
    if kind not in ("llama", "gpt2"):
        raise keys.wrong("tokenizer.ggml.model", "'llama' or 'gpt2', which are read")
    tokens = keys.items("tokenizer.ggml.tokens", str)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if not tokens or len(vocabulary) < len(tokens):
        raise keys.wrong("tokenizer.ggml.tokens", "tokens that differ")
    types = keys.items("tokenizer.ggml.token_type", int, len(tokens)) if _has(keys, "token_type") else [1] * len(tokens)
    try:
        tokenizer = _llama(keys, tokens, vocabulary) if kind == "llama" else _gpt2(keys, vocabulary)
    except TokenizerError:
        raise
    except Exception as fault:  # the library raises bare Exception for a vocabulary that it cannot use
        reason = (str(fault).strip() or "no message").splitlines()[0]
        raise TokenizerError(f"{file.path}: tokenizer.ggml.* cannot be used ({reason}); use another file") from fault
    names = {name: _special(keys, key, tokens) for name, key in SPECIAL.items()}
    marked = {token for token, kind in zip(tokens, types, strict=True) if kind in (UNKNOWN, CONTROL)}
    special = [token for token in tokens if token in marked or token in names.values()]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED and token not in special]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in own])
    _frame(tokenizer, keys, kind, names)
    with importing:  # 1 s
        from transformers import PreTrainedTokenizerFast

    template = keys.data.get("tokenizer.chat_template")
    given = {name: token for name, token in names.items() if token is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        **given,
    )


def _has(keys: Fields, key: str) -> bool:
    return f"tokenizer.ggml.{key}" in keys.data


def _special(keys: Fields, key: str, tokens: Sequence[str]) -> str | None:
    number = keys.token_id(f"tokenizer.ggml.{key}_token_id")
    if number is None:
        return None
    if number >= len(tokens):
        raise keys.wrong(f"tokenizer.ggml.{key}_token_id", f"below the number of tokens ({len(tokens)})")
    return tokens[number]


def _llama(keys: _Keys, tokens: list[str], vocabulary: dict[str, int]) -> Tokenizer:
    scores = keys.items("tokenizer.ggml.scores", float, len(tokens))
    if any(finite(score) is None for score in scores):
        raise keys.wrong("tokenizer.ggml.scores", "finite numbers")
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    unknown = _special(keys, "unknown", tokens)
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(vocabulary, scores),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=has_bytes,
    )
    tokenizer = Tokenizer(model)
    spaced: list[Any] = [normalizers.Replace(" ", SPACE)]
    decoded: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if keys.boolean("tokenizer.ggml.add_space_prefix", True):
        spaced.insert(0, normalizers.Prepend(SPACE))
        decoded.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaced)
    tokenizer.decoder = decoders.Sequence(decoded)
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, the best first: by its score, then as transformers orders equal ones."""
    found = []
    for token, number in vocabulary.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[number], len(left), len(right), left, right) for left, right in known]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _gpt2(keys: _Keys, vocabulary: dict[str, int]) -> Tokenizer:
    rule = keys.text("tokenizer.ggml.pre", "gpt-2")
    if rule not in RULES:
        raise keys.wrong("tokenizer.ggml.pre", f"one of {', '.join(RULES)}, which are read")
    merges = []
    for merge in keys.items("tokenizer.ggml.merges", str):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise TokenizerError(
                f"{keys.where}: tokenizer.ggml.merges holds {show(merge)}, expected two tokens with a space between; "
                "use another file"
            )
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule in LLAMA3))
    pattern = RULES[rule]
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    else:
        tokenizer.pre_tokenizer = by_bytes
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _frame(tokenizer: Tokenizer, keys: Fields, kind: str, names: dict[str, str | None]) -> None:
    """BOS and EOS around a text, as the keys say; files that do not say put BOS before Llama's."""
    usual = kind == "llama" or keys.data.get("tokenizer.ggml.pre") in LLAMA3
    first = names["bos_token"] if keys.boolean("tokenizer.ggml.add_bos_token", usual) else None
    last = names["eos_token"] if keys.boolean("tokenizer.ggml.add_eos_token", False) else None
    parts = [part for part in (first, "$A", last) if part is not None]
    if len(parts) > 1:
        ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((first, last)) if token is not None]
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)
