"""Whole decode steps of an engine on the Triton kernels, by the code that a CUDA graph records, against the CPU engine.

Runs on a GPU, or in the interpreter's process (see `test_interpreted`).
"""

from __future__ import annotations

import os

import pytest
import torch
from placed_plans import placed, predictor_of, some_profile
from steps_by_hand import CalledAgain
from tiny_engine import make_model, some_tokens
from triton_backend import gpu_backends

import prosparse
from prosparse.engine import Engine
from prosparse.engine.graph import StepPool, Steps
from prosparse.model.cache import KVCache
from prosparse.model.step import DeviceStep, unfit

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIZES = {"hidden": 48, "neurons": 80, "layers": 2}


def ahead_of(folder, mode, weights="fp32"):
    """The CPU's engine, and one that decodes by recorded steps: on a GPU in graphs, else by calling them."""
    plain = prosparse.load(folder, mode=mode, weights=weights, device="cpu", context=40)
    if not INTERPRETED:
        ahead = prosparse.load(folder, mode=mode, weights=weights, device="cuda", context=40)
        assert ahead._pool is not None
        return plain, ahead
    assert unfit(plain.decoder) is None
    pool = StepPool(plain.decoder, plain.kv_dtype, new_graph=CalledAgain)
    return plain, Engine(plain.decoder, plain.tokenizer, plain.plan, plain.model_sampling, plain.kv_dtype, pool=pool)


@pytest.mark.parametrize(
    ("family", "mode", "extra"),
    [("llama", "exact", {}), ("minicpm", "dense", {"tied": True}), ("bamboo", "exact", {"sliding_window": 5})],
    ids=["llama", "minicpm", "bamboo"],
)
def test_the_same_greedy_tokens_as_the_cpu(tmp_path, family, mode, extra, caplog):
    plain, ahead = ahead_of(make_model(tmp_path / "model", family=family, **SIZES, **extra), mode)
    prompts = [some_tokens(4), some_tokens(2, seed=1)] if family == "llama" else [some_tokens(6)]
    expected = plain.generate(prompts, max_new_tokens=3, ignore_eos=True)
    actual = ahead.generate(prompts, max_new_tokens=3, ignore_eos=True)
    assert [r.token_ids for r in actual] == [r.token_ids for r in expected]
    for key in ("activation_sparsity", "decode_tokens", "bytes_per_token"):
        assert actual[0].stats[key] == expected[0].stats[key], key
    assert not [record for record in caplog.records if "no CUDA graph" in record.message]


def test_logits_of_a_step(tmp_path):
    plain, ahead = ahead_of(make_model(tmp_path / "model", **SIZES), "exact", "bf16")
    ids, device = torch.tensor([5, 40]), ahead.decoder.device
    caches = [KVCache(plain.config, 2, 16, torch.bfloat16, d) for d in (torch.device("cpu"), device)]
    for cache in caches:
        for part in (cache.keys, cache.values):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(0)))
    tally = torch.zeros(plain.config.layers, 4, dtype=torch.int64)
    hidden = plain.decoder.decode(ids[:, None], (1, 0), (3, 15), caches[0], tally)
    expected = plain.decoder.logits(hidden)
    steps = Steps(ahead.decoder, caches[1], DeviceStep, CalledAgain)
    assert steps.begin(ids, (1, 0), (3, 15))
    steps.launch()
    assert (
        float((steps.logits.cpu() - expected).abs().max() / expected.abs().max()) < 2e-3
    )  # 16-bit products on the CPU
    assert list(steps.read(0)[0]) == steps.logits.argmax(-1).tolist()


@pytest.mark.parametrize("mode", ["exact", "predicted"])
def test_a_model_on_two_tiers_says_what_it_says_undivided(tmp_path, mode, caplog):
    """A layer of the CPU, one that both share, and one of the GPU, with lm_head there: see `engine.shared_step`."""
    folder = make_model(tmp_path / "model", **SIZES | {"layers": 3})
    plain = prosparse.load(folder, weights="fp32", device="cpu", context=64)
    options = {} if mode == "exact" else {"predictor": predictor_of(plain, "low_rank")}  # which names all
    profile = some_profile(plain)
    plan = placed(plain, profile, [(0, 0, False), (48, 16) if mode == "exact" else (48, 48), (80, 80)], mode)
    device = "cpu" if INTERPRETED else "cuda"
    engine = prosparse.load(folder, plan=plan, profile=profile, device=device, **options)
    if INTERPRETED:
        pool = StepPool(engine.decoder, engine.kv_dtype, new_graph=CalledAgain)
        engine = Engine(
            engine.decoder, engine.tokenizer, engine.plan, engine.model_sampling, engine.kv_dtype, pool=pool
        )
    given = {"max_new_tokens": 4, "ignore_eos": True}
    found = engine.generate(some_tokens(5), **given)
    assert found.token_ids == plain.generate(some_tokens(5), **given).token_ids
    assert found.stats["cold"]["parts"] == 3 and not engine._pool._idle.failed
    assert not [record for record in caplog.records if "no CUDA graph" in record.message]
