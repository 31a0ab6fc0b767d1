"""Plans for two devices, made by hand, and profiles to go with them."""

from __future__ import annotations

from typing import Any

import torch
from predictors import predictor_of

from prosparse.engine import Engine
from prosparse.plan import LayerPlan, Placement, Plan, Split, fingerprint
from prosparse.study.measure.engine_subject import EngineSubject
from prosparse.weights.neuron_profile import Profile

__all__ = ["placed", "predictor_of", "some_profile"]


def some_profile(engine: Engine, seed: int = 1) -> Profile:
    """Random counts of a model."""
    config, facts = engine.config, EngineSubject(engine).facts
    counts = torch.randint(0, 1000, (config.layers, config.neurons), generator=torch.Generator().manual_seed(seed))
    return Profile(counts, 1000, facts.fingerprint, facts.content, "made up")


def placed(
    engine: Engine,
    profile: Profile,
    splits: list[tuple[Any, ...]],
    mode: str = "exact",
    weights: str = "fp32",
    head: bool = True,
    context: int = 64,
    layout: str = "rows",
) -> Plan:
    """A plan with these splits, (gate, hot, attention)."""
    placement = Placement(1 << 40, 1 << 30, context, weights, weights, head, profile.key, 1.0)
    layers = tuple(LayerPlan(mode, layout, Split(*split)) for split in splits)
    return Plan(fingerprint(engine.config), layers, "a test", placement)
