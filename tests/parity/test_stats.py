"""Stats against an independent forward pass, and bytes counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from float64_forward import forward
from tiny_engine import make_model

import prosparse
from prosparse.engine.session import Session

CASES = {
    "relu": {"family": "llama"},
    "fatrelu": {"family": "sparsellama"},
    "minicpm": {"family": "minicpm", "tied": True},
    "bamboo": {"family": "bamboo"},
}


@pytest.mark.parametrize("mode", ["dense", "exact"])
@pytest.mark.parametrize("name", CASES)
def test_activation_sparsity_is_that_of_the_decoded_tokens(name: str, mode: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", **CASES[name])
    engine = prosparse.load(folder, mode=mode, weights="fp32")
    prompt = [1, 40, 50, 60, 70]
    result = engine.generate(prompt, max_new_tokens=33, ignore_eos=True)
    stats = result.stats
    assert (stats["prefill_tokens"], stats["decode_tokens"]) == (5, 32)
    # The last token is never fed back, so decode steps see the text without it.
    products = [p[5:] for p in forward(folder, [*prompt, *result.token_ids[:-1]]).products]
    assert products[0].shape[0] == 32
    expected = [float((product == 0).double().mean()) for product in products]
    assert stats["activation_sparsity"]["layers"] == pytest.approx(expected, abs=1e-6)
    assert stats["activation_sparsity"]["mean"] == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert stats["tokens_per_s"] > 0 and 0 < stats["ttft_s"] < 60 and engine.stats == stats


# bytes of a row of 64 columns: int8 fills a group of 128 codes, int4 two of 32, and both end at a multiple of 16
ROW = {"fp32": 256, "bf16": 128, "int8": 144, "int4": 48}


@pytest.mark.parametrize(
    ("weights", "lm_head"), [("fp32", "auto"), ("bf16", "auto"), ("int8", "auto"), ("int4", "int8")]
)
def test_bytes_per_token_by_hand(weights: str, lm_head: str, tmp_path: Path) -> None:
    """hidden 64, neurons 96, 2 layers, 4 heads and 2 kv heads of 16, vocab 259; prompt 3 tokens, then 5, so 4 steps."""
    folder = make_model(tmp_path / "model")
    row, head = ROW[weights], ROW[weights if lm_head == "auto" else lm_head]
    attention = (4 + 2 + 2) * 16 + 64  # rows
    weights_of_a_step = (2 * attention + 2 * 96) * row + 259 * head  # the gate of both layers, and lm_head
    cache = sum(2 * 2 * 2 * 16 * length for length in (4, 5, 6, 7)) / 4 * (4 if weights == "fp32" else 2)
    for mode in ("dense", "exact"):
        engine = prosparse.load(folder, mode=mode, weights=weights, lm_head=lm_head)
        stats = engine.generate([1, 2, 3], max_new_tokens=5, ignore_eos=True).stats
        active = sum(1 - share for share in stats["activation_sparsity"]["layers"]) * 96
        rows = 2 * 96 if mode == "dense" else active
        expected = weights_of_a_step + rows * 2 * row + cache
        assert stats["bytes_per_token"] == pytest.approx(expected, abs=1), mode


def test_bytes_of_several_prompts_share_the_weights_of_a_step(tmp_path: Path) -> None:
    engine = prosparse.load(make_model(tmp_path / "model"), mode="dense", weights="fp32")
    alone = engine.generate([1, 2, 3], max_new_tokens=5, ignore_eos=True).stats["bytes_per_token"]
    together = engine.generate([[1, 2, 3]] * 4, max_new_tokens=5, ignore_eos=True)[0].stats["bytes_per_token"]
    cache = sum(2 * 2 * 2 * 16 * length for length in (4, 5, 6, 7)) / 4 * 4
    assert together == pytest.approx((alone - cache) / 4 + cache, abs=1)


@pytest.mark.parametrize("family", ["llama", "bamboo"])
def test_bytes_of_exact_are_the_rows_that_a_step_needs(family: str, tmp_path: Path) -> None:
    """Two sequences in a step share rows; with dReLU fewer rows of down are read than of up."""
    folder = make_model(tmp_path / "model", family=family)
    engine = prosparse.load(folder, mode="exact", weights="fp32")
    prompts = [[1, 17], [1, 200, 30]]
    results = engine.generate(prompts, max_new_tokens=2, ignore_eos=True)
    up, down = [], []
    for prompt, result in zip(prompts, results, strict=True):
        trace = forward(folder, [*prompt, result.token_ids[0]])
        up.append(torch.stack([gate[-1] > 0 for gate in trace.gates]))
        down.append(torch.stack([product[-1] != 0 for product in trace.products]))
    rows = int((up[0] | up[1]).sum()) + int((down[0] | down[1]).sum())
    attention = (4 + 2 + 2) * 16 * 64 + 64 * 4 * 16
    cache = 2 * 2 * 2 * 16 * (3 + 4)
    expected = 4 * (2 * attention + 2 * 96 * 64 + 259 * 64 + rows * 64 + cache) / 2
    assert results[0].stats["bytes_per_token"] == pytest.approx(expected, abs=1)


def test_positions_outside_the_window_are_not_read(tmp_path: Path) -> None:
    engine = prosparse.load(make_model(tmp_path / "model", family="bamboo", sliding_window=6), weights="fp32")
    session = Session(engine.decoder, engine.kv_dtype, 2, 64)
    session.decode(torch.ones(2, 3, dtype=torch.int64), (0, 1), (0, 20))
    assert session.positions_read == 3 + (6 + 2)  # positions 0 to 2; and 15 to 22, of which each row sees 6
