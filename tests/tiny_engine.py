"""Tiny models that can be given text, engines run token by token, and how close logits have to be."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tiny_model import write_tiny
from tiny_tokenizer import VOCAB, write_tokenizer
from torch import Tensor

from prosparse.engine import Engine
from prosparse.engine.session import Session

# fp32 rounds to 6e-8; hundreds of roundings that add like a random walk stay near 1e-6 of the largest logit.
FP32_BOUND = 1e-5


def assert_logits_close(actual: Tensor, expected: Tensor, what: str, bound: float = FP32_BOUND) -> float:
    """Largest difference over the largest logit; returned, so that callers can report it."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} against {tuple(expected.shape)}"
    assert bool(actual.isfinite().all()), f"{what}: logits are not finite"
    error = float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert error < bound, f"{what}: relative error {error:.2e}, allowed {bound:.0e}"
    return error


def make_model(folder: Path, **keys: Any) -> Path:
    """A tiny model with a tokenizer, in fp32 so that all the readers of its weights see the same numbers."""
    given = {"vocab": VOCAB, "dtype": torch.float32, "max_position": 512, **keys}
    return write_tokenizer(write_tiny(folder, **given))


def some_tokens(n: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    """n token ids, beginning with BOS."""
    return [1, *random.Random(seed).choices(range(3, vocab), k=n - 1)]


def decoded_logits(engine: Engine, token_ids: list[int], prefix: int = 0) -> Tensor:
    """Logits of every token from `prefix` on, fed one by one to decode steps: [len(token_ids) - prefix, vocab]."""
    session = Session(engine.decoder, engine.kv_dtype, 1, engine.context)
    ids = torch.tensor(token_ids)
    if prefix:
        list(session.prefill(ids[:prefix]))
    rows = [session.decode(ids[i].view(1, 1), (0,), (i,)) for i in range(prefix, len(token_ids))]
    return torch.cat(rows)
