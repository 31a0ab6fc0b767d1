"""Neurons that change places after a prompt: the same network in another order, and more of what is active is hot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import PACKED, label, make_case
from divided_ffn import divide, some_order
from placed_plans import placed, predictor_of, some_profile
from shared_by_hand import LaunchesByHand
from steps_by_hand import CalledAgain
from tiny_engine import assert_logits_close, decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.engine.adapting import Adapting
from prosparse.engine.graph import StepPool
from prosparse.engine.shared_step import SharedStep
from prosparse.errors import UserError
from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import COLD_UP_ROWS, SHARED_SIZE, UP_ROWS, new_tally
from prosparse.sparsity import HybridFFN
from prosparse.sparsity.exchange import PRIOR, Exchange
from prosparse.weights.neuron_profile import Profile
from prosparse.weights.predictor import LayerPredictor

RELU, NEURONS, N = Activation("relu"), 77, 96
IDS = some_tokens(40)


@pytest.mark.parametrize("cuts", [(33, 12), (NEURONS, 40), (40, 40)], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, *PACKED], ids=label)
def test_the_ffn_stays_what_it_was(weights, cuts) -> None:
    """Whatever changes places: what it computes, reads and shows in the model's order."""
    case = make_case(3, 64, NEURONS, weights)
    kinds = ["exact", "predicted"] if cuts[0] == cuts[1] else ["exact"]
    for mode in kinds:
        predictor = LayerPredictor("low_bit_gate", torch.full((NEURONS,), -0.1)) if mode == "predicted" else None
        ffn, still = (divide(case, RELU, mode, *cuts, some_order(NEURONS), predictor) for _ in range(2))
        frequency = torch.linspace(0.9, 0.1, NEURONS)
        exchange = Exchange(ffn, frequency)
        ffn.seen += torch.arange(NEURONS) * 10  # the last ones most
        gains = exchange.gains()
        assert len(gains) > 4 and bool((gains[:-1] >= gains[1:]).all())
        exchange.swap(5)
        assert ffn.order[:5].tolist() != still.order[:5].tolist()
        assert sorted(ffn.order.tolist()) == list(range(NEURONS))
        done, expected = (new_tally("cpu", size=SHARED_SIZE) for _ in range(2))
        found, before = ffn.decode(case.x, done), still.decode(case.x, expected)
        assert float((found - before).abs().max() / before.abs().max()) < 1e-5
        assert done[UP_ROWS] == expected[UP_ROWS] and done[COLD_UP_ROWS] != expected[COLD_UP_ROWS]
        ours, theirs = (shown_by(each, case.x) for each in (ffn, still))
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 2e-2, "in another order"


def shown_by(ffn: HybridFFN, x: torch.Tensor) -> torch.Tensor:
    """Gate values of a prompt, in the model's order."""
    shown = []
    ffn.prefill(x, lambda residual, normed, value, h: shown.append(value) or h)
    return shown[0]


def test_only_what_is_clear_moves() -> None:
    case = make_case(1, 64, NEURONS, torch.float32)
    exchange = Exchange(divide(case, RELU, "exact", NEURONS, 20, some_order(NEURONS)), torch.full((NEURONS,), 0.5))
    assert len(exchange.gains()) == 0  # all alike
    exchange.ffn.seen[:20] += 90
    exchange.ffn.seen[20:] += 100  # against the noise of 64 and some 90 counts, nothing
    assert len(exchange.gains()) == 0
    exchange.ffn.seen[30] += 4 * PRIOR
    assert len(exchange.gains()) == 1
    assert len(exchange.gains()) == 1, "asking counts nothing twice"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m", layers=3)


@pytest.fixture(scope="module")
def undivided(folder: Path) -> Engine:
    return prosparse.load(folder, weights="fp32")


SPLITS = {"exact": [(N, 32), (48, 17), (N, N)], "predicted": [(32, 32), (0, 0, False), (48, 48)]}


def adapted(folder: Path, undivided: Engine, mode: str = "exact", adapt="1MiB", **options) -> Engine:
    made = some_profile(undivided)
    profile = Profile(torch.full_like(made.counts, 100), 1000, made.model, made.content, "all alike")
    if mode == "predicted":
        options["predictor"] = predictor_of(undivided, "low_rank")  # which names all
    plan = placed(undivided, profile, SPLITS[mode], mode)
    return prosparse.load(folder, plan=plan, profile=profile, device="cpu", adapt=adapt, **options)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("mode", SPLITS)
def test_more_of_what_is_active_is_hot_and_texts_stay(folder, undivided, mode: str, graphs: bool) -> None:
    """A profile that knows nothing, which a prompt corrects; graphs that were recorded before go on."""
    engine, fixed = (adapted(folder, undivided, mode, adapt) for adapt in ("1MiB", None))
    if graphs:
        engine._pool = StepPool(
            engine.decoder, engine.kv_dtype, lambda *given: SharedStep(*given, launches=LaunchesByHand), CalledAgain
        )
    options = {"max_new_tokens": 12, "ignore_eos": True}
    shares = []
    for _ in range(3):
        found, expected = engine.generate(IDS, **options), fixed.generate(IDS, **options)
        assert found.token_ids == expected.token_ids == undivided.generate(IDS, **options).token_ids
        shares.append((found.stats["cold"]["share"], expected.stats["cold"]["share"]))
        assert expected.stats["cold"]["moved"] is None
    assert all(ours < 0.92 * theirs for ours, theirs in shares), shares
    assert engine.generate(IDS, **options).stats["cold"]["moved"]["pairs"] < 10  # it has settled
    assert_logits_close(decoded_logits(engine, IDS), decoded_logits(undivided, IDS), "moved")


def test_traffic_is_bounded(folder, undivided) -> None:
    engine = adapted(folder, undivided, adapt=10_000)
    row = engine.decoder.blocks[0][1].hot.up.row_bytes
    moved = engine.generate(IDS, max_new_tokens=2).stats["cold"]["moved"]
    assert 0 < moved["bytes"] <= 10_000 and moved["pairs"] == 10_000 // (6 * row)


def test_nothing_moves_under_another_run(folder, undivided) -> None:
    engine = adapted(folder, undivided)
    other = engine.stream(IDS, max_new_tokens=20, ignore_eos=True)
    next(other)
    order = [block[1].order.clone() for block in engine.decoder.blocks[:2]]
    assert engine.generate(some_tokens(30, seed=9), max_new_tokens=2).stats["cold"]["moved"] == {"pairs": 0, "bytes": 0}
    assert all(torch.equal(own, block[1].order) for own, block in zip(order, engine.decoder.blocks, strict=False))
    other.close()
    assert engine.generate(some_tokens(30, seed=9), max_new_tokens=2).stats["cold"]["moved"]["pairs"] > 0


def test_what_cannot_adapt_says_so(folder, undivided) -> None:
    with pytest.raises(UserError, match="load: adapt is for a budget or a placed plan, and there is neither"):
        prosparse.load(folder, adapt="1MiB")
    with pytest.raises(UserError, match="adapt: 'much' is no size"):
        adapted(folder, undivided, adapt="much")
    assert Adapting([], 100).move() == (0, 0)
