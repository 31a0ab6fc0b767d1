"""MiniCPM-MoE: the router's choice is that of the formulas, and a decode step reads the chosen experts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from float64_forward import forward
from parity.rows import ROWS
from tiny_engine import assert_logits_close, decoded_logits, some_tokens
from torch import Tensor

import prosparse
from prosparse.engine.session import Session
from prosparse.errors import UserError
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS
from prosparse.kernels.weight import Weight
from prosparse.plan import LayerPlan, Plan, fingerprint
from prosparse.sparsity import ExpertsFFN

MOE = next(row for row in ROWS if row.model == "MiniCPM-MoE-8x2B")
NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MOE.make(tmp_path_factory.mktemp("model") / "model")


def blocks(engine: Any) -> list[ExpertsFFN]:
    return [ffn for _, ffn in engine.decoder.blocks]


def step(engine: Any, session: Session, token: int, at: int) -> Tensor:
    return session.decode(torch.tensor([[token]]), (0,), (at,))


def chosen_experts(engine: Any, ids: list[int]) -> list[set[int]]:
    """Of each layer, what the last token is sent to when it is decoded after the others."""
    seen: list[set[int]] = []
    for ffn in blocks(engine):
        route = ffn._route

        def note(x: Tensor, route: Any = route) -> Any:
            found = route(x)
            seen.append({expert for expert, _, _ in found})
            return found

        ffn._route = note  # type: ignore[method-assign]
    decoded_logits(engine, ids, prefix=len(ids) - 1)
    for ffn in blocks(engine):
        del ffn._route
    return seen[-len(engine.decoder.blocks) :]


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_a_step_reads_the_chosen_experts_alone(folder: Path, weights: str) -> None:
    """All others hold NaN, and what is computed has the same bits; a chosen one that holds NaN shows."""
    engine, ids = prosparse.load(folder, weights=weights), some_tokens(20, seed=6)
    clean, chosen = decoded_logits(engine, ids, prefix=19), chosen_experts(engine, ids)
    assert all(len(experts) == 2 for experts in chosen)
    session = Session(engine.decoder, engine.kv_dtype, 1, 32)
    list(session.prefill(torch.tensor(ids[:19])))
    for ffn, experts in zip(blocks(engine), chosen, strict=True):
        for expert in set(range(8)) - experts:
            poison(ffn.experts[expert])
    before = session.tally.clone()
    assert torch.equal(step(engine, session, ids[19], 19), clean)
    neurons = engine.config.neurons
    assert (session.tally - before)[:, [UP_ROWS, DOWN_ROWS]].eq(2 * neurons).all()
    assert (session.tally - before)[:, NONZERO].le(2 * neurons).all()
    poison(blocks(engine)[1].experts[min(chosen[1])])
    assert bool(step(engine, session, ids[19], 19).isnan().all())


def poison(expert: tuple[Weight, ...]) -> None:
    for weight in expert:
        if weight.is_packed:
            weight.codes.view(torch.uint8).fill_(255)  # scales of NaN
        else:
            weight.codes.fill_(NAN)


def test_counts_the_bytes_of_the_chosen_experts(folder: Path) -> None:
    engine = prosparse.load(folder, weights="fp32")
    ffn, neurons = blocks(engine)[0], engine.config.neurons
    rows = 2 * neurons
    assert ffn.bytes_read(1, [rows, rows, 0, 0]) == ffn.router.nbytes + 3 * rows * ffn.gate.row_bytes
    stats = engine.generate("abc", max_new_tokens=8).stats
    assert stats["activation_sparsity"]["mean"] == 0, "of the neurons of the two experts none is zero"
    rest = engine.decoder.lm_head.nbytes + sum(
        attention.qkv.nbytes + attention.o.nbytes + ffn.router.nbytes for attention, ffn in engine.decoder.blocks
    )
    cache = 2 * 3 * 48 * 4 * 13  # keys and values of 3 layers, at most 13 positions
    chosen = 3 * 3 * rows * ffn.gate.row_bytes
    assert rest + chosen < stats["bytes_per_token"] <= rest + chosen + cache


def test_every_expert_and_both_choices_matter(folder: Path) -> None:
    ids = some_tokens(40, seed=7)
    expected = forward(folder, ids).logits
    one = forward(folder, ids, num_experts_per_tok=1).logits
    assert float((one - expected).abs().max() / expected.abs().max()) > 1e-3
    engine = prosparse.load(folder, weights="fp32")
    used = set().union(*(set().union(*chosen_experts(engine, ids[: n + 2])) for n in range(0, 38, 3)))
    assert used == set(range(8))
    for chunk in (512, 17, 3):
        assert_logits_close(engine.logits(ids, chunk=chunk), expected, f"prefill by {chunk}")


def test_a_batch_gives_what_each_gives_alone(folder: Path) -> None:
    engine = prosparse.load(folder, weights="bf16")
    prompts = ["a", "prompt of another length", "b"]
    together = engine.generate(prompts, max_new_tokens=10)
    alone = [engine.generate(prompt, max_new_tokens=10).token_ids for prompt in prompts]
    assert [result.token_ids for result in together] == alone


def test_has_no_mode_exact(folder: Path) -> None:
    with pytest.raises(UserError, match="mode exact needs an activation that makes exact zeros"):
        prosparse.load(folder, mode="exact")
    config = prosparse.ModelConfig.from_hf(folder)
    with pytest.raises(UserError, match="layout bundled is for layers of one gated FFN"):
        prosparse.load(folder, plan=Plan(fingerprint(config), (LayerPlan("dense", "bundled"),) * 3, "a test"))
