"""The solver: as good as an exact one on small problems, never worse with more memory, quick on large ones."""

from __future__ import annotations

import numpy as np
import pytest
from placed import case_of, small_case, whole_model_bytes
from placement.exact_solver import exact_seconds

from prosparse.placement import solve as solver
from prosparse.placement.problem import Choice
from prosparse.placement.solve import layer_split, solve

SMALL = range(200)


def budgets(case, count):
    """From too small for anything to enough for everything."""
    least, most = case.least_budget, whole_model_bytes(case)
    return np.linspace(0.95 * least, 1.02 * most, count).astype(int).tolist()


@pytest.mark.parametrize("part", range(4))
def test_within_a_hundredth_of_the_exact_solver(part):
    pytest.importorskip("scipy.optimize", reason="the exact solver is a development tool: pip install scipy")
    worse = []
    for seed in SMALL[part::4]:
        case = small_case(seed)
        share = np.random.default_rng(seed + 1000).uniform(0, 1)
        budget = int(case.least_budget + share * (whole_model_bytes(case) - case.least_budget))
        mine, best = case.problem.seconds(solve(case.problem, budget)), exact_seconds(case.problem, budget)
        assert mine >= best * (1 - 1e-5), f"seed {seed}: {mine} beats the exact solver's {best}"
        worse.append(mine / best - 1)
    assert max(worse) < 0.01, f"seed {SMALL[part::4][int(np.argmax(worse))]} is {max(worse):.2%} slower"


@pytest.mark.parametrize("seed", range(0, 60, 6))
def test_more_memory_is_never_slower(seed):
    problem = (case := small_case(seed)).problem
    found = [solve(problem, budget) for budget in budgets(case, 50)]
    seconds = [problem.seconds(choice) for choice in found]
    assert seconds == sorted(seconds, reverse=True)
    assert all(problem.nbytes(choice) <= budget for choice, budget in zip(found, budgets(case, 50), strict=True))


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_more_memory_is_never_slower_at_7b(mode):
    problem = (case := case_of(mode=mode)).problem
    seconds = [problem.seconds(solve(problem, budget)) for budget in budgets(case, 16)]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] < 0.2 * seconds[0]


@pytest.mark.parametrize("seed", range(1, 60, 6))
def test_never_slower_than_whole_layers_or_the_cpu(seed):
    problem = (case := small_case(seed)).problem
    for budget in budgets(case, 10):
        mine, (unshared, split) = problem.seconds(solve(problem, budget)), layer_split(problem, budget)
        assert unshared.nbytes(split) <= budget
        assert mine <= unshared.seconds(split) * (1 + 1e-12)
        assert mine <= problem.seconds(Choice(len(problem.layers), False, ()))


def test_70b_takes_few_improvements(monkeypatch):
    calls = []
    improved = solver._improved
    monkeypatch.setattr(solver, "_improved", lambda *given: calls.append(1) or improved(*given))
    case = case_of("relullama-70b", preset="24gb-pcie4")
    choice = solve(case.problem, case.machine.gpu_bytes)
    assert 0 < len(choice.picks) <= 80
    assert len(calls) <= 20  # each takes some hundredths of a second


def test_options_are_a_frontier():
    for own in case_of().problem.layers:
        assert np.all(np.diff(own.nbytes) > 0) and np.all(np.diff(own.seconds) < 0)
        assert np.all(own.hot <= own.gate)
        slopes = np.diff(own.seconds[own.hull]) / np.diff(own.nbytes[own.hull])
        assert np.all(np.diff(slopes) > 0) and own.hull[0] == 0 and own.hull[-1] == len(own.nbytes) - 1
