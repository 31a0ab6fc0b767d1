"""A divided model says what the undivided one says: any order, cuts and format, and the same greedy text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from near_ties import GAPS, assert_rounding_decides, first_differences, prompts_of
from placed_plans import placed, some_profile
from tiny_engine import FP32_BOUND, assert_logits_close, decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.kernels.weight import FORMATS

N = 96  # neurons of the tiny model
IDS = some_tokens(14)
CLOSED = 1e9  # a threshold that nothing reaches: activation sparsity 100 %


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m", layers=3, max_position=64)


@pytest.mark.parametrize("threshold", [0.0, CLOSED], ids=["relu", "nothing opens"])
@pytest.mark.parametrize("weights", FORMATS)
def test_any_order_and_any_cuts(folder: Path, weights: str, threshold: float) -> None:
    """`test_hybrid_ffn` has any sparsity of one FFN, in every format; this is the whole model, drawn four times."""
    undivided = prosparse.load(folder, weights=weights, fatrelu_threshold=threshold)
    undivided.kv_dtype = torch.float32
    expected = decoded_logits(undivided, IDS)
    bound = 2e-4 if weights in ("int8", "int4") else FP32_BOUND  # see `test_every_mode_format_and_layout`
    for seed in range(4):
        draw, profile = random.Random(seed), some_profile(undivided, seed)
        gates = [draw.choice([0, 1, N, draw.randrange(N)]) for _ in range(3)]
        cuts = [(gate, draw.randrange(gate + 1)) if draw.random() < 0.8 else (0, 0, False) for gate in gates]
        plan = placed(undivided, profile, cuts, weights=weights, head=draw.random() < 0.5)
        engine = prosparse.load(folder, plan=plan, profile=profile, device="cpu", fatrelu_threshold=threshold)
        engine.kv_dtype = torch.float32
        assert_logits_close(decoded_logits(engine, IDS), expected, f"{weights}, {cuts}", bound)
        stats = engine.generate(IDS, max_new_tokens=4, ignore_eos=True).stats
        assert (stats["activation_sparsity"]["mean"] == 1.0) == (threshold == CLOSED)


def test_greedy_text_in_fp32_and_flips() -> None:
    """Where a token or a gate falls to the other side, rounding decided; docs/hybrid-decode.md says how many do."""
    undivided = prosparse.load(weights="fp32", context=256)
    neurons, layers = undivided.config.neurons, undivided.config.layers
    profile, prompts = some_profile(undivided), prompts_of(12)
    splits = [(0, 0, False), *[(neurons, neurons // 5)] * (layers - 3), (neurons // 2, neurons // 3), (0, 0)]
    engine = prosparse.load(plan=placed(undivided, profile, splits, context=256), profile=profile, device="cpu")
    options = {"max_new_tokens": 24, "ignore_eos": True}
    expected = [undivided.generate(prompt, **options) for prompt in prompts]
    found = [engine.generate(prompt, **options) for prompt in prompts]
    parted = first_differences(expected, found)
    for n, step in parted.items():
        ids = undivided.tokenizer.encode(prompts[n]) + list(expected[n].token_ids[:step])
        assert_rounding_decides(ids, GAPS["fp32"], lambda ids: decoded_logits(undivided, ids)[-1], EMBEDDED_MODEL)
    gates = 0
    for n, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        if n not in parted:
            sparsity = [each.stats["activation_sparsity"]["layers"] for each in (theirs, ours)]
            gates += sum(round(abs(a - b) * neurons * 23) for a, b in zip(*sparsity, strict=True))
    assert len(parted) <= 1 and gates <= 10, f"{len(parted)} texts parted, {gates} gates flipped"
