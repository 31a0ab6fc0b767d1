"""Subject "hybrid": decoding on a GPU and a CPU, simulated on described machines. Nothing here is timed.

`docs/hybrid.md` says what the simulator knows and what not. Every row's `device` and `note` say that it is simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

from prosparse.config import ModelConfig
from prosparse.config.shapes import shape
from prosparse.engine.load import EMBEDDED_MODEL, load
from prosparse.hardware import PRESETS
from prosparse.placement.activity import stretched, synthetic_profile
from prosparse.placement.explain import bound_s
from prosparse.placement.place import Case
from prosparse.placement.simulate import Simulated, simulate
from prosparse.placement.solve import layer_split, solve
from prosparse.plan import Plan, fingerprint
from prosparse.study import CALIBRATION, measure
from prosparse.weights.neuron_profile import Profile

from .progress import Progress
from .row import Row, make_row

BASELINE = "layer split of the same engine in the same mode and memory, simulated"
NOTE = "simulated on a described machine: a model of it, not a measurement"
CONTEXT = 512
TOKENS = 8192  # of the packaged text, for the frequency curves of the packaged model


def compare_hybrid(
    name: str,
    sparsity: float,
    presets: Sequence[str] = tuple(PRESETS),
    modes: Sequence[str] = ("exact", "predicted"),
    weights: str = "bf16",
    curves: Sequence[str] = ("synthetic", "embedded"),
    tokens: int = 16,
    progress: Progress | None = None,
) -> list[Row]:
    """Place a shape on presets and simulate it beside a layer split.

    Args:
        name: of the shape.
        sparsity: activation sparsity.
        presets: of `hardware.PRESETS`.
        modes: of `plan.MODES`.
        weights: format.
        curves: "synthetic", or "embedded": those of the packaged model, stretched to this one.
        tokens: how many are simulated.
        progress: called with (stage, done, total).

    Returns:
        One row per machine, mode and curves; "simulated" holds what is not a row's usual key.
    """
    config, rows = shape(name), []
    cases = [(preset, mode, curve) for curve in curves for mode in modes for preset in presets]
    profiles = {curve: _profile(config, curve, sparsity) for curve in curves}
    for number, (preset, mode, curve) in enumerate(cases):
        if progress is not None:
            progress("simulating", number, len(cases))
        profile, machine = profiles[curve], PRESETS[preset]
        case = Case.of(config, profile, machine, [mode] * config.layers, weights, weights, CONTEXT, None)
        rows.append(_row(name, case, preset, mode, curve, tokens))
    return rows


def _row(name: str, case: Case, preset: str, mode: str, curve: str, tokens: int) -> Row:
    budget = case.machine.gpu_bytes
    plan, split = plans_of(case, budget)
    mine, theirs = (simulate(case.config, each, case.profile, case.machine, tokens=tokens) for each in (plan, split))
    assert plan.placement is not None, "a plan of a case has a placement"
    active = 1 - float(case.profile.frequency.mean())
    return make_row(
        subject="hybrid",
        part=f"{curve} curves",
        shape=name,
        layers=case.config.layers,
        mode=mode,
        weights=case.weights,
        device=f"simulated {preset}",
        threads=None,
        context=CONTEXT,
        activation_sparsity=round(active, 4),
        tokens_per_s=round(mine.tokens_per_s, 2),
        tpot_ms=round(1e3 / mine.tokens_per_s, 3),
        bytes=round(mine.gpu_bytes + mine.cpu_bytes),
        dense_ratio=round(mine.tokens_per_s / theirs.tokens_per_s, 3),
        baseline=BASELINE,
        simulated={
            "machine": case.machine.source,
            "frequencies": case.profile.text,
            "reason": plan.reason,
            "budget": budget,
            "expected_tokens_per_s": round(plan.placement.tokens_per_s, 2),
            "layer_split_tokens_per_s": round(theirs.tokens_per_s, 2),
            "bound_tokens_per_s": round(1 / bound_s(case, budget), 2),
            **rounded(mine),
        },
        repeat=tokens,
        note=NOTE,
    )


def plans_of(case: Case, budget: int) -> tuple[Plan, Plan]:
    """The placed plan and the fastest layer split within a budget of GPU memory, bytes."""
    unshared, choice = layer_split(case.problem, budget)
    return case.plan(solve(case.problem, budget), budget), case.of_problem(unshared).plan(choice, budget)


def rounded(found: Simulated) -> dict[str, float | None]:
    """What a simulation says beside its tokens per second, for the key "simulated"."""
    values = {key: value for key, value in dataclasses.asdict(found).items() if key != "tokens_per_s"}
    return {key: None if value is None else float(f"{value:.4g}") for key, value in values.items()}


def _profile(config: ModelConfig, curve: str, sparsity: float) -> Profile:
    if curve == "synthetic":
        return synthetic_profile(config, fingerprint(config), sparsity)
    return stretched(_embedded(), config, fingerprint(config), sparsity)


@cache
def _embedded() -> Profile:
    return measure(load(device="cpu"), CALIBRATION, tokens=TOKENS, name=EMBEDDED_MODEL.name).profile()
