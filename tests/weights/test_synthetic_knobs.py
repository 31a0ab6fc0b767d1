"""Asked against measured for the four knobs, on tokens that calibration has not seen, in the folder as written."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from prosparse.config.shapes import shape
from prosparse.engine import load
from prosparse.study.knobs import difference, measure_knobs
from prosparse.study.measure.engine_subject import EngineSubject
from prosparse.weights.synthetic import Knobs, PlantedBases, settle, walk, write_synthetic
from prosparse.weights.synthetic.activity import beta_quantiles, both, hot_share

CONFIG = dataclasses.replace(
    shape("minicpm-s-1b"), hidden=384, neurons=1024, heads=6, kv_heads=2, vocab=4096, layers=4, max_position=512
)
DEFAULT = Knobs(0.88)
CASES = [
    *(Knobs(value) for value in (0.3, 0.6, 0.9)),
    *(Knobs(0.88, skew=value) for value in (0.25, 0.6, 0.9)),
    *(Knobs(0.88, predictability=value) for value in (0.0, 0.5, 0.95)),
    *(Knobs(0.88, overlap=value) for value in (0.25, 0.6, 0.85)),
]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """An engine with the default knobs, dense."""
    folder = tmp_path_factory.mktemp("synthetic") / "default"
    write_synthetic("test", CONFIG, folder, DEFAULT)
    return load(folder, mode="dense")


def see(engine, tokens):
    """Normed inputs [layers, tokens, hidden] and which neurons are active [layers, tokens, neurons]."""
    inputs, active = [], []

    def look(layer, x, value, h):
        inputs.append(x[0].clone())
        active.append(h[0] != 0)

    EngineSubject(engine).read(tokens[None], look)
    return torch.stack(inputs), torch.stack(active)


@pytest.mark.parametrize("asked", CASES, ids=str)
def test_asked_is_what_is_measured(asked, tmp_path):
    config, knobs = write_synthetic("test", CONFIG, tmp_path / "model", asked)
    given = {name: value for name, value in vars(asked).items() if value is not None}
    assert {name: pytest.approx(value, abs=0.005) for name, value in given.items()} == {
        name: vars(knobs)[name] for name in given
    }
    measured = measure_knobs(load(tmp_path / "model", mode="dense"), settle(config, knobs), sequences=4, length=512)
    assert difference(knobs, measured) < 0.02, (knobs, measured)


def test_a_shape_without_up_projection(tmp_path):
    sizes = {"hidden": 384, "neurons": 1024, "heads": 6, "kv_heads": 6, "head_dim": 64, "vocab": 4096, "layers": 2}
    config, asked = dataclasses.replace(shape("opt-6.7b"), **sizes, max_position=512), Knobs(0.85, 0.6, 0.5, 0.6)
    config, knobs = write_synthetic("test", config, tmp_path / "model", asked, "fp32")
    engine = load(tmp_path / "model", mode="exact", weights="fp32")
    measured = measure_knobs(engine, settle(config, knobs), sequences=4, length=512)
    assert difference(knobs, measured) < 0.02, (knobs, measured)
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), walk(config.vocab, 40)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert float((engine.logits(ids) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_the_hottest_are_hot_without_knowing_the_plan(default):
    tokens = torch.randint(CONFIG.vocab, (512,), generator=torch.Generator().manual_seed(9))
    _, active = see(default, tokens)
    first, second = active[:, ::2].sum(1), active[:, 1::2].sum(1)
    hottest = first.argsort(dim=1, descending=True)[:, : round(0.2 * CONFIG.neurons)]
    share = second.gather(1, hottest).sum(1) / second.sum(1)
    assert float(share.mean()) == pytest.approx(settle(CONFIG, DEFAULT).knobs.skew, abs=0.02)


def test_tokens_that_do_not_walk_overlap_by_chance(default):
    tokens = torch.randint(CONFIG.vocab, (512,), generator=torch.Generator().manual_seed(9))
    _, active = see(default, tokens)
    overlap = (active[:, 1:] & active[:, :-1]).sum() / active[:, 1:].sum()
    rates = active.double().mean(1)
    by_chance = float((rates.square().sum(1) / rates.sum(1)).mean())
    assert float(overlap) == pytest.approx(by_chance, abs=0.02)
    assert by_chance < settle(CONFIG, DEFAULT).knobs.overlap - 0.1


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_singular_values_show_the_planted_part(tmp_path, share):
    write_synthetic("test", CONFIG, tmp_path / "model", Knobs(0.88, predictability=share))
    _, ffn = load(tmp_path / "model", mode="dense").decoder.blocks[0]
    energy = torch.linalg.svdvals(ffn.gate.values()[:, 1:]).square()
    rank, columns = PlantedBases(CONFIG.hidden, 0, "cpu")[0].shape
    # noise fills the rest of both spaces evenly
    rest = (1 - rank / columns) * (1 - rank / CONFIG.neurons)
    assert 1 - float(energy[rank:].sum() / energy.sum()) / rest == pytest.approx(share, abs=0.02)


def test_a_predictor_of_the_planted_rank_finds_what_is_active(default):
    x, active = see(default, walk(CONFIG.vocab, 256, seed=77))
    rank = PlantedBases(CONFIG.hidden, 0, "cpu")[0].shape[0]
    scores = []
    for own, (_, ffn) in zip(x, default.decoder.blocks, strict=True):
        gate = ffn.gate.values()
        left, size, right = torch.linalg.svd(gate[:, 1:], full_matrices=False)
        guess = (own[:, 1:] @ right[:rank].T * size[:rank]) @ left[:, :rank].T
        scores.append(guess + own[:, :1] * gate[:, 0])
    score = torch.stack(scores)
    needed = score[active].sort().values
    least = needed[int(0.05 * needed.numel())]  # recall 0.95
    assert float((score >= least).float().mean()) < 0.18


def test_walks_stay_in_clusters_and_never_repeat():
    ids = walk(4096, 2000, seed=3)
    same = (ids[1:] // 16 == ids[:-1] // 16).double().mean()
    assert float(same) == pytest.approx(0.9, abs=0.03)
    assert (ids[1:] != ids[:-1]).all() and ids.min() >= 0 and ids.max() < 4096
    assert torch.equal(ids, walk(4096, 2000, seed=3)) and not torch.equal(ids, walk(4096, 2000, seed=4))


@pytest.mark.parametrize(("mean", "concentration"), [(0.12, 8.0), (0.5, 0.5), (0.98, 3.0), (0.02, 1e3)])
def test_rates_are_beta(mean, concentration):
    rates = beta_quantiles(torch.tensor([mean], dtype=torch.float64), concentration, 20_000)[0]
    assert float(rates.mean()) == pytest.approx(mean, abs=1e-3)
    assert float(rates.var()) == pytest.approx(mean * (1 - mean) / (concentration + 1), rel=0.02)
    assert (rates[1:] >= rates[:-1]).all()


def test_the_probability_of_both_is_that_of_the_bivariate_normal():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1_000_000, generator=rng)
    b = 0.7 * a + (1 - 0.7**2) ** 0.5 * b
    rates = torch.tensor([[0.05, 0.3, 0.8]], dtype=torch.float64)
    limits = -torch.special.ndtri(rates[0]).float()
    sampled = torch.stack([((a > z) & (b > z)).double().mean() for z in limits])
    assert both(rates, 0.7)[0].tolist() == pytest.approx(sampled.tolist(), abs=0.002)
    assert hot_share(torch.full((2, 10), 0.3, dtype=torch.float64)) == pytest.approx(0.2)
