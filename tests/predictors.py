"""Predictors for engines of the tests."""

from __future__ import annotations

import math

import torch

from prosparse.engine import Engine
from prosparse.kernels.weight import in_format
from prosparse.plan import fingerprint
from prosparse.study.measure.engine_subject import EngineSubject
from prosparse.weights.predictor import LayerPredictor, Predictor


def low_rank(engine: Engine, offset: float, relu: bool = True, un_normed: bool = False) -> LayerPredictor:
    """A random guess of rank 6."""
    rng, config = torch.Generator().manual_seed(5), engine.config
    first = torch.randn(6, config.hidden, generator=rng)
    second = torch.randn(config.neurons, 6, generator=rng)
    offsets = torch.full((config.neurons,), offset)
    return LayerPredictor(
        "low_rank", offsets, in_format(first, "bf16"), in_format(second, "bf16"), relu=relu, un_normed=un_normed
    )


def predictor_of(engine: Engine, kind: str = "sign_bits", offset: float = math.inf) -> Predictor:
    """The same for every layer; with an offset of infinity it names every neuron."""
    config, facts = engine.config, EngineSubject(engine).facts
    own = (
        low_rank(engine, offset)
        if kind == "low_rank"
        else LayerPredictor(kind, torch.full((config.neurons,), float(offset)))
    )
    assert facts.fingerprint == fingerprint(config)
    return Predictor((own,) * config.layers, facts.fingerprint, facts.content)
