"""The engine on a CUDA device, against the CPU. `make test-gpu` needs one; elsewhere these are skipped."""

from __future__ import annotations

import os

import pytest
import torch

import prosparse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("PROSPARSE_TEST_GPU") != "1", reason="no CUDA device here"
    ),
]
PROMPT = "The little girl looked at the"


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_logits_are_those_of_the_cpu(mode):
    engines = {device: prosparse.load(mode=mode, weights="fp32", device=device) for device in ("cpu", "cuda")}
    ids = engines["cpu"].tokenizer.encode(PROMPT)
    expected, actual = (engines[device].logits(ids) for device in ("cpu", "cuda"))
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4  # TF32 is off by default


def test_exact_writes_what_dense_writes():
    results = [
        prosparse.load(mode=mode, device="cuda").generate(PROMPT, max_new_tokens=32) for mode in ("dense", "exact")
    ]
    assert results[0].token_ids == results[1].token_ids
    assert results[1].stats["activation_sparsity"]["mean"] > 0.9


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "drawn"])
def test_graphs_write_what_the_cpu_writes(options, caplog):
    """Several sequences that end at different times, in graphs of one and of two."""
    prompts = [PROMPT, "One day"]
    texts = []
    for device in ("cpu", "cuda"):
        engine = prosparse.load(weights="fp32", device=device)
        assert (engine._pool is not None) == (device == "cuda")
        texts.append([result.text for result in engine.generate(prompts, max_new_tokens=24, stop=(" and",), **options)])
    assert texts[0] == texts[1]
    assert "no CUDA graph" not in caplog.text


def test_memory_stays_what_it_was():
    engine = prosparse.load(device="cuda")
    engine.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
    held = torch.cuda.memory_allocated()
    for tokens in (8, 200):
        engine.generate(PROMPT, max_new_tokens=tokens, ignore_eos=True)
        assert torch.cuda.memory_allocated() == held
