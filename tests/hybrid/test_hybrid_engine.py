"""A model on two tiers of the CPU's memory: tokens of the undivided one, and its logits but for the order of sums."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from placed_plans import placed, predictor_of, some_profile
from tiny_engine import FP32_BOUND, assert_logits_close, decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.engine.session import Session
from prosparse.kernels import cpu
from prosparse.kernels.weight import FORMATS, Weight
from prosparse.model.tiers import FAST, SLOW
from prosparse.plan import Plan
from prosparse.sparsity import DenseFFN, ExactFFN, HybridFFN
from prosparse.weights.neuron_profile import Profile

N = 96  # neurons of the tiny model
IDS = some_tokens(40)
# (gate, hot, attention) of three layers
SPLITS = {
    "gates first": [(N, 32), (N, 0), (N, N)],
    "nothing on the fast tier": [(0, 0, False)] * 3,
    "all on the fast tier": [(N, N)] * 3,
    "attention alone": [(0, 0)] * 3,
    "layers and cuts": [(0, 0, False), (48, 17), (N, 1)],
    "one neuron": [(1, 1), (1, 0), (N, N - 1)],
    "slow between fast": [(50, 50), (0, 0, False), (50, 20)],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m", layers=3)


@pytest.fixture(scope="module", params=["llama", "tied minicpm"])
def folder(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "llama":
        return llama
    return make_model(tmp_path_factory.mktemp("model") / "m", family="minicpm", layers=3, tied=True)


@pytest.fixture(scope="module")
def undivided(folder: Path) -> Engine:
    return prosparse.load(folder, weights="fp32")


@pytest.fixture(scope="module")
def profile(undivided: Engine) -> Profile:
    return some_profile(undivided)


def on_two(folder: Path, plan: Plan, profile: Profile, **options: object) -> Engine:
    return prosparse.load(folder, plan=plan, profile=profile, device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("splits", SPLITS)
def test_logits_and_tokens_are_those_of_the_undivided_model(
    folder: Path, undivided: Engine, profile: Profile, splits: str, head: bool
) -> None:
    engine = on_two(folder, placed(undivided, profile, SPLITS[splits], head=head), profile)
    assert_logits_close(decoded_logits(engine, IDS), decoded_logits(undivided, IDS), f"{splits}, decoded")
    assert_logits_close(engine.logits(IDS), undivided.logits(IDS), f"{splits}, prefilled")
    for prompt in ("Once upon a time", [5, 9, 200]):
        options = {"max_new_tokens": 16, "ignore_eos": True}
        assert engine.generate(prompt, **options).token_ids == undivided.generate(prompt, **options).token_ids


@pytest.mark.parametrize(("weights", "layout"), [*((weights, "rows") for weights in FORMATS), ("bf16", "bundled")])
@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_every_mode_format_and_layout(llama: Path, mode: str, weights: str, layout: str) -> None:
    """Logits of the same mode undivided, both with a cache in fp32: weights are the same numbers, sums in fp32.

    What packed rows are multiplied with is rounded to steps of 1 / 32767 of the largest number of its group, where an
    input that differs in the last place of fp32 may go to the next step; a few of those are below 2e-4 of a logit.
    """
    whole = prosparse.load(llama, weights=weights, mode="dense")
    profile, predictor = some_profile(whole), predictor_of(whole, "low_rank", 0.0) if mode == "predicted" else None
    options = {} if predictor is None else {"predictor": predictor}
    undivided = prosparse.load(llama, weights=weights, mode=mode, **options)  # type: ignore[arg-type]
    cuts = [(48, 48), (N, N), (17, 17)] if mode != "exact" else [(48, 16), (N, 33), (N, 0)]
    plan = placed(undivided, profile, cuts, mode, weights, layout=layout)
    engine = on_two(llama, plan, profile, **options)
    assert (engine.weights, engine.plan.mode) == (weights, mode)
    engine.kv_dtype = undivided.kv_dtype = torch.float32
    bound = 2e-4 if weights in ("int8", "int4") else FP32_BOUND
    assert_logits_close(decoded_logits(engine, IDS), decoded_logits(undivided, IDS), mode, bound)


@pytest.mark.parametrize("kind", ["sign_bits", "low_bit_gate", "low_rank"])
def test_a_predictor_that_names_all_is_exact_and_one_that_names_none_skips_the_cold_part(
    folder: Path, undivided: Engine, profile: Profile, kind: str
) -> None:
    plan = placed(undivided, profile, [(40, 40), (N, N), (0, 0, False)], "predicted")
    every = on_two(folder, plan, profile, predictor=predictor_of(undivided, kind))
    assert_logits_close(decoded_logits(every, IDS), decoded_logits(undivided, IDS), kind)
    none = on_two(folder, plan, profile, predictor=predictor_of(undivided, kind, -math.inf), audit=2)
    stats = none.generate(IDS, max_new_tokens=9, ignore_eos=True).stats
    layers = {"shared": 1, "slow": 1}
    assert stats["cold"] == {"layers": layers, "share": None, "parts": 8, "skipped": 8, "moved": None}
    assert stats["predicted_sparsity"]["mean"] == 1.0 and stats["audit"]["recall"]["mean"] == 0.0


def test_stats_say_what_the_cold_side_did(folder: Path, undivided: Engine, profile: Profile) -> None:
    plan = placed(undivided, profile, [(N, 30), (20, 20), (0, 0, False)])
    options = {"max_new_tokens": 11, "ignore_eos": True}
    engine = on_two(folder, plan, profile)
    ours, theirs = engine.generate(IDS, **options).stats, undivided.generate(IDS, **options).stats
    assert ours["activation_sparsity"] == theirs["activation_sparsity"]
    assert ours["bytes_per_token"] == theirs["bytes_per_token"]
    assert theirs["cold"] is None
    assert ours["cold"]["layers"] == {"shared": 2, "slow": 1} and ours["cold"]["parts"] == 20
    assert 0 < ours["cold"]["share"] < 1 and ours["cold"]["skipped"] == 0


def test_hot_neurons_alone_skip_the_cold_part(folder: Path, undivided: Engine) -> None:
    """With the neurons that a prompt opens first, none of the others is asked for."""
    session = Session(undivided.decoder, undivided.kv_dtype, 1, 8)
    seen: list[torch.Tensor] = []

    def watch(layer: int, residual: torch.Tensor) -> None:
        ffn = undivided.decoder.blocks[layer][1]
        assert isinstance(ffn, ExactFFN)
        gate = torch.nn.functional.linear(ffn.normed(residual), ffn.gate.codes)
        seen.append((gate > ffn.activation.threshold)[0])

    undivided.decoder.decode(torch.tensor([[7]]), (0,), (0,), session.cache, session.tally, watch)
    profile = some_profile(undivided)
    profile = Profile(torch.stack(seen).long(), 1, profile.model, profile.content, "one token")
    cuts = [(N, int(opened.sum())) for opened in seen]
    engine = on_two(folder, placed(undivided, profile, cuts), profile)
    run = Session(engine.decoder, engine.kv_dtype, 1, 8)
    logits = run.decode(torch.tensor([[7]]), (0,), (0,))
    expected = Session(undivided.decoder, undivided.kv_dtype, 1, 8).decode(torch.tensor([[7]]), (0,), (0,))
    assert_logits_close(logits, expected, "one token")
    assert [done[6] for done in run.done] == [0, 0, 0]


def test_blocks_tiers_and_bytes_are_those_of_the_plan(folder: Path, undivided: Engine, profile: Profile) -> None:
    """Every tensor lies where the plan says, none of them twice."""
    splits = [(0, 0, False), (48, 17), (N, N)]
    config = undivided.config
    for head in (True, False):
        engine = on_two(folder, placed(undivided, profile, splits, head=head), profile)
        decoder = engine.decoder
        slow, hybrid, whole = (ffn for _, ffn in decoder.blocks)
        assert isinstance(slow, ExactFFN) and isinstance(hybrid, HybridFFN) and isinstance(whole, ExactFFN)
        assert [tier.name for tier in decoder.tiers.layers] == [SLOW, FAST, FAST]
        assert decoder.tiers.head.name == (FAST if head else SLOW)
        assert decoder.tiers.embed.name == (FAST if head and config.tied_embeddings else SLOW)
        row = 4 * config.hidden
        hot, cold = hybrid.hot, hybrid.cold
        assert [w.nbytes for w in (hot.gate, hot.up, hot.down)] == [48 * row, 17 * row, 17 * row]
        assert [w.nbytes for w in (cold.gate, cold.up, cold.down)] == [(N - 48) * row, (N - 17) * row, (N - 17) * row]
        order = profile.hot_first(1)
        original = undivided.decoder.blocks[1][1]
        assert isinstance(original, ExactFFN)
        for name in ("gate", "up", "down"):
            both = torch.cat([getattr(hot, name).codes, getattr(cold, name).codes])
            assert torch.equal(both, getattr(original, name).codes[order])
        session = Session(decoder, engine.kv_dtype, 1, 64)
        fast, slow_tier = decoder.tiers.layers[1], decoder.tiers.layers[0]
        of_layer = 2 * config.kv_heads * 64 * config.head_dim * 4
        assert (session.cache.nbytes(fast), session.cache.nbytes(slow_tier)) == (2 * of_layer, of_layer)
        arenas = {"fast": blocks_of([hot.gate, whole.gate]), "slow": blocks_of([cold.gate, cold.up, slow.gate])}
        assert all(len(found) == 1 for found in arenas.values()) and arenas["fast"] != arenas["slow"]


def blocks_of(weights: list[Weight]) -> set[int]:
    """The blocks of memory that these lie in."""
    return {weight.codes.untyped_storage().data_ptr() for weight in weights}


def test_the_residual_moves_only_where_its_tier_changes(
    folder: Path, undivided: Engine, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    engine = on_two(folder, placed(undivided, profile, SPLITS["slow between fast"], head=False), profile)
    last = [engine.decoder.tiers.embed]

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        if self != last[0]:
            moves.append(self.name)
            last[0] = self
        return tensor

    monkeypatch.setattr("prosparse.model.tiers.Tier.bring", bring)
    session = Session(engine.decoder, engine.kv_dtype, 1, 8)
    session.decode(torch.tensor([[7]]), (0,), (0,))
    assert moves == [FAST, SLOW, FAST, SLOW]


@pytest.mark.skipif(not cpu.available(), reason="without the extension layers are walked block by block")
def test_layers_of_the_cpu_alone_are_one_call(llama: Path) -> None:
    undivided = prosparse.load(llama, weights="bf16")
    profile = some_profile(undivided)
    plan = placed(undivided, profile, [(0, 0, False), (0, 0, False), (50, 9)], weights="bf16")
    engine, walked = on_two(llama, plan, profile), on_two(llama, plan, profile)
    assert [(run.first, run.end, run.whole is None) for run in engine.decoder._runs] == [(0, 2, False), (2, 3, True)]
    walked.decoder._runs = [dataclasses.replace(run, whole=None) for run in walked.decoder._runs]
    assert torch.equal(decoded_logits(engine, IDS), decoded_logits(walked, IDS))
    options = {"max_new_tokens": 5, "ignore_eos": True}
    ours, theirs = engine.generate(IDS, **options).stats, walked.generate(IDS, **options).stats
    assert ours["activation_sparsity"] == theirs["activation_sparsity"] and ours["cold"] == theirs["cold"]


def test_several_prompts_take_turns_in_the_cache_of_one(folder: Path, undivided: Engine, profile: Profile) -> None:
    engine = on_two(folder, placed(undivided, profile, SPLITS["layers and cuts"]), profile)
    options = {"max_new_tokens": 6, "ignore_eos": True}
    prompts = ["Once", "upon a", "time"]
    several = engine.generate(prompts, **options)
    assert [each.token_ids for each in several] == [engine.generate(each, **options).token_ids for each in prompts]
    assert engine._session(16).cache.slots == 1


def test_rows_of_several_tokens_in_one_step(folder: Path, undivided: Engine, profile: Profile) -> None:
    engine = on_two(folder, placed(undivided, profile, SPLITS["layers and cuts"]), profile)
    found = []
    for each in (engine, undivided):
        session = Session(each.decoder, each.kv_dtype, 1, 64)
        found.append(torch.cat([session.decode(torch.tensor([IDS[i : i + 16]]), (0,), (i,)) for i in (0, 16)]))
    assert_logits_close(*found, "16 rows a step")


def test_a_wholly_dense_model_of_silu_is_divided_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "silu", hidden_act="silu")
    undivided = prosparse.load(folder, weights="fp32")
    assert isinstance(undivided.decoder.blocks[0][1], DenseFFN)
    profile = some_profile(undivided)
    engine = on_two(folder, placed(undivided, profile, [(30, 30), (60, 10)], "dense"), profile)
    assert_logits_close(decoded_logits(engine, IDS), decoded_logits(undivided, IDS), "silu")


def test_two_threads_may_share_an_engine_on_two_tiers(folder: Path, undivided: Engine, profile: Profile) -> None:
    engine = on_two(folder, placed(undivided, profile, SPLITS["layers and cuts"]), profile)
    options = {"max_new_tokens": 12, "ignore_eos": True}
    alone = [engine.generate([5, seed], **options).token_ids for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(lambda seed: engine.generate([5, seed], **options).token_ids, range(4))
    assert list(together) == alone


def test_the_embedded_model_says_the_same_on_two_tiers() -> None:
    options = {"max_new_tokens": 32, "ignore_eos": True}
    undivided = prosparse.load(weights="fp32")
    profile, neurons = some_profile(undivided), undivided.config.neurons
    splits = [(0, 0, False)] + [(neurons, neurons // 5)] * (undivided.config.layers - 2) + [(neurons // 2, 7)]
    engine = on_two(None, placed(undivided, profile, splits, context=256), profile)  # type: ignore[arg-type]
    for prompt in ("Once upon a time", "The ship"):
        assert engine.generate(prompt, **options).token_ids == undivided.generate(prompt, **options).token_ids
