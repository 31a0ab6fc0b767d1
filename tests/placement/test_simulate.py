"""The simulator against the latency model, and against what must be so; nothing here is timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from placed import SEVEN, case_of, profile_of

from prosparse.placement.simulate import simulate
from prosparse.placement.solve import layer_split, solve
from prosparse.plan import Split
from prosparse.weights.neuron_profile import Profile

CARDS = ("8gb-pcie3", "8gb-pcie4")


def both(case, tokens=2):
    """Simulated: the plan, and the layer split within the same memory."""
    budget = case.machine.gpu_bytes
    plan = case.plan(solve(case.problem, budget), budget)
    unshared, choice = layer_split(case.problem, budget)
    split = case.of_problem(unshared).plan(choice, budget)
    return plan, [simulate(case.config, each, case.profile, case.machine, tokens=tokens) for each in (plan, split)]


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
@pytest.mark.parametrize("preset", ["8gb-pcie3", "8gb-pcie4-x8", "12gb-pcie4"])
def test_agrees_with_the_latency_model_and_never_loses_to_whole_layers(mode, preset):
    plan, (found, split) = both(case_of(mode=mode, preset=preset))
    assert found.tokens_per_s >= 0.99 * plan.placement.tokens_per_s
    assert found.tokens_per_s <= 1.09 * plan.placement.tokens_per_s  # which asks of sharing to bring 5 % more
    assert found.tokens_per_s >= 0.999 * split.tokens_per_s


@pytest.mark.parametrize(("name", "preset"), [("prosparse-llama-2-13b", "8gb-pcie3"), ("relullama-70b", "24gb-pcie4")])
def test_larger_models_do_not_lose_either(name, preset):
    _, (found, split) = both(case_of(name, preset=preset), tokens=1)
    assert found.tokens_per_s >= 0.999 * split.tokens_per_s


@pytest.mark.parametrize("preset", CARDS)
@pytest.mark.parametrize(("mode", "times"), [("exact", 2.1), ("predicted", 2.7)])
def test_a_7b_on_8_gb_gains(preset, mode, times):
    """Goals are 2 and 3: docs/hybrid.md has what is reached, with which frequencies."""
    _, (found, split) = both(case_of(mode=mode, preset=preset), tokens=4)
    assert found.tokens_per_s > times * split.tokens_per_s


def test_the_same_seed_gives_the_same_and_another_one_hardly_another():
    case = case_of()
    plan, _ = both(case)
    runs = [simulate(case.config, plan, case.profile, case.machine, tokens=2, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[2].tokens_per_s == pytest.approx(runs[0].tokens_per_s, rel=0.03)


def test_bytes_and_waiting_are_counted():
    case = case_of(preset="24gb-pcie4")
    plan, (found, _) = both(case)
    sizes, layers = case.sizes, case.config.layers
    rows = sum(float(own.rows[-1]) for own in case.activity)
    read = layers * (sizes.attention + sizes.cache + case.config.neurons * sizes.row) + sizes.head + rows * sizes.row
    assert found.gpu_bytes == pytest.approx(read, rel=0.01) and found.cpu_bytes == 0
    assert found.syncs == 2 and found.skipped is None and found.cpu_busy == 0


def test_the_cpu_is_left_alone_where_nothing_cold_is_active():
    case = case_of()
    counts = profile_of(SEVEN).counts.clone()
    order = counts.argsort(1, descending=True)
    counts.scatter_(1, order[:, 4000:], torch.zeros_like(counts))
    profile = Profile(counts, profile_of(SEVEN).tokens, "", "", "cold ones are dead")
    plan, _ = both(case)
    layers = tuple(dataclasses.replace(own, split=Split(11008, 4000)) for own in plan.layers)
    cut = dataclasses.replace(plan, layers=layers)
    found = simulate(case.config, cut, profile, case.machine, tokens=2)
    assert found.skipped == 1.0 and found.cpu_bytes <= case.sizes.head
    assert simulate(case.config, cut, profile_of(SEVEN), case.machine, tokens=2).skipped == 0.0


def test_neurons_that_open_together_make_tokens_uneven_not_more_active():
    case = case_of()
    plan, _ = both(case)
    alone, together = (
        simulate(case.config, plan, case.profile, case.machine, tokens=12, together=share) for share in (0.0, 0.3)
    )
    assert together.cpu_bytes == pytest.approx(alone.cpu_bytes, rel=0.1)
    assert together.tokens_per_s <= 1.02 * alone.tokens_per_s
