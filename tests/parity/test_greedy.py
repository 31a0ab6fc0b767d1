"""The same greedy text: exact and dense on the embedded model, both and transformers on the small one.

A first difference is forgiven only where rounding decides: the two likeliest tokens are closer than a stated gap, or a
gate lies within rounding of the FATReLU threshold. With the C++ kernels dense and exact are the same to the bit, and
nothing is forgiven there.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from float64_forward import forward
from hf_llama import load_hf
from tiny_engine import decoded_logits

import prosparse
from prosparse.engine import Engine
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.kernels import cpu

SMALL_MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"
GAPS = {"fp32": 1e-3, "bf16": 0.05}
PROMPTS, TOKENS = 64, 64


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Places spread over the packaged held-out text, 40 to 100 characters each."""
    text = lzma.decompress((EMBEDDED_MODEL.parent / "text" / "held_out.txt.xz").read_bytes()).decode()
    starts = range(0, len(text) - 200, len(text) // PROMPTS)
    return [text[start : start + 40 + i % 61].strip() for i, start in enumerate(starts)][:PROMPTS]


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


def first_differences(
    expected: Sequence[prosparse.Generation], found: Sequence[prosparse.Generation]
) -> dict[int, int]:
    """Step of the first difference, by number of the prompt."""
    steps = {
        n: first_difference(a.token_ids, b.token_ids) for n, (a, b) in enumerate(zip(expected, found, strict=True))
    }
    return {n: step for n, step in steps.items() if step is not None}


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    assert len(expected) == len(found)
    return next((i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b), None)


def assert_rounding_decides(
    ids: list[int], allowed: float, logits: Callable[[list[int]], torch.Tensor], folder: Path
) -> None:
    first, second = logits(ids).topk(2).values.tolist()
    if first - second < allowed:
        return
    threshold = prosparse.ModelConfig.from_hf(folder).activation.threshold
    trace = forward(folder, ids)
    largest = max(float(gate.abs().max()) for gate in trace.gates)
    distance = trace.nearest_to(threshold)
    assert threshold > 0 and distance < 1e-6 * largest, (
        f"another token after {len(ids)}, where the two likeliest are {first - second:.3f} apart and the nearest gate "
        f"is {distance:.1e} from the threshold"
    )
