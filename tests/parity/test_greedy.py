"""The same greedy text: exact and dense on the embedded model, both and transformers on the small one.

A first difference is forgiven only where rounding decides: the two likeliest tokens are closer than a stated gap, or a
gate lies within rounding of the FATReLU threshold. With the C++ kernels dense and exact are the same to the bit, and
nothing is forgiven there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_llama import load_hf
from near_ties import GAPS, assert_rounding_decides, first_difference, first_differences, prompts_of
from tiny_engine import decoded_logits

import prosparse
from prosparse.engine import Engine
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.kernels import cpu

SMALL_MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"
PROMPTS, TOKENS = 64, 64


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return prompts_of(PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_exact_writes_what_dense_writes(prompts: list[str], weights: str) -> None:
    assert len(set(prompts)) == PROMPTS
    dense, exact = (prosparse.load(mode=mode, weights=weights) for mode in ("dense", "exact"))
    options = {"max_new_tokens": TOKENS, "ignore_eos": True}
    expected, found = dense.generate(prompts, **options), exact.generate(prompts, **options)
    assert all(len(result.token_ids) == TOKENS for result in expected)
    assert len({result.text for result in expected}) > PROMPTS * 0.9
    flips = first_differences(expected, found)
    if cpu.available():
        assert not flips
    for n, step in flips.items():
        ids = dense.tokenizer.encode(prompts[n]) + list(expected[n].token_ids[:step])
        assert_rounding_decides(ids, GAPS[weights], lambda ids: decoded_logits(dense, ids)[-1], EMBEDDED_MODEL)
    assert expected[0].stats["activation_sparsity"] == found[0].stats["activation_sparsity"]
    assert found[0].stats["activation_sparsity"]["mean"] > 0.9
    assert found[0].stats["bytes_per_token"] < expected[0].stats["bytes_per_token"]


@pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference makes no bitwise promise")
@pytest.mark.parametrize("weights", ["fp32", "fp16", "bf16"])
def test_logits_of_dense_and_exact_are_bitwise_equal(prompts: list[str], weights: str) -> None:
    dense, exact = (prosparse.load(mode=mode, weights=weights) for mode in ("dense", "exact"))
    ids = dense.tokenizer.encode(prompts[0] + prompts[1])[:48]
    assert torch.equal(decoded_logits(dense, ids), decoded_logits(exact, ids))


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_writes_what_transformers_writes(prompts: list[str], mode: str) -> None:
    engine, hf = prosparse.load(SMALL_MODEL, mode=mode, weights="fp32"), load_hf(SMALL_MODEL)
    hf.generation_config.eos_token_id = None
    prompts = prompts[:6]
    found = engine.generate(prompts, max_new_tokens=48, ignore_eos=True)
    for prompt, result in zip(prompts, found, strict=True):
        ids = engine.tokenizer.encode(prompt)
        with torch.inference_mode():
            whole = hf.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False, pad_token_id=0)[0].tolist()
        expected = whole[len(ids) :]
        step = first_difference(expected, result.token_ids)
        if step is not None:
            assert_rounding_decides(ids + expected[:step], GAPS["fp32"], last_logits(engine), SMALL_MODEL)


def last_logits(engine: Engine) -> Callable[[list[int]], torch.Tensor]:
    return lambda ids: engine.logits(ids)[-1]
