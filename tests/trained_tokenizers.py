"""Tokenizers trained in milliseconds: byte-level BPE (GPT-2, Llama 3), and SentencePiece style (Llama 2, MiniCPM)."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from prosparse.config import ModelConfig, RopeConfig
from prosparse.kernels.activation import Activation

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "  Spaces,   tabs\tand\nnew lines; numbers 0123456789 <b>markup</b> {braces}",
    "你好，世界。用户说：今天天气很好。<用户>问<AI>答",
    "Ünïcödé é ñ ß ł — “quotes” … emoji 😀👍🏽",
]
SPECIALS = ["<unk>", "<s>", "</s>"]


def model_config(vocab: int, family: str = "llama", **changes: object) -> ModelConfig:
    sizes = {"hidden": 8, "neurons": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 4, "max_position": 64}
    given = {"norm_eps": 1e-5, "rope": RopeConfig(), "activation": Activation("relu"), **changes}
    return ModelConfig(family=family, vocab=vocab, **sizes, **given)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=False, normalized=False)])
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """With byte fallback, a prefix space, and the BOS framing of Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIALS + byte_tokens, show_progress=False)
    # Split only to train, so that merges stay short; SentencePiece itself merges across the whole text.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator([text for text in TEXTS if "😀" not in text], trainer)
    plan = json.loads(tokenizer.to_str())
    plan["pre_tokenizer"] = None
    plan["added_tokens"] = plan["added_tokens"][: len(SPECIALS)]  # the trainer adds the byte tokens, which are ordinary
    tokenizer = Tokenizer.from_str(json.dumps(plan))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
