"""Models, machines and problems for tests of placing."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np

from prosparse.config import ModelConfig
from prosparse.config.shapes import shape
from prosparse.hardware import PRESETS, Machine
from prosparse.placement.activity import synthetic_profile
from prosparse.placement.place import Case
from prosparse.plan import fingerprint
from prosparse.weights.neuron_profile import Profile
from prosparse.weights.synthetic import Knobs

SEVEN = "prosparse-llama-2-7b"


@cache
def profile_of(name: str, sparsity: float = 0.89) -> Profile:
    """Synthetic frequencies of a shape."""
    config = shape(name)
    return synthetic_profile(config, fingerprint(config), sparsity)


def case_of(name: str = SEVEN, mode: str = "exact", preset: str | Machine = "8gb-pcie4", weights: str = "bf16") -> Case:
    """A shape on a machine, with a cache of 512 tokens."""
    config = shape(name)
    machine = preset if isinstance(preset, Machine) else PRESETS[preset]
    return Case.of(config, profile_of(name), machine, [mode] * config.layers, weights, weights, 512, None)


def small_config(**changed: object) -> ModelConfig:
    """A model of a few hundred neurons."""
    sizes = {"hidden": 512, "neurons": 256, "layers": 3, "heads": 8, "kv_heads": 4, "head_dim": 64, "vocab": 4096}
    return dataclasses.replace(shape(SEVEN), **(sizes | changed))


def small_case(seed: int) -> Case:
    """A random small model, profile and mode on a random machine whose latencies fit its size."""
    rng = np.random.default_rng(seed)
    config = small_config(
        layers=int(rng.integers(1, 5)), neurons=int(rng.integers(4, 17)) * 16, vocab=int(rng.integers(1, 20)) * 256
    )
    knobs = Knobs(float(rng.uniform(0.3, 0.97)))
    profile = synthetic_profile(config, fingerprint(config), knobs)
    mode = str(rng.choice(["dense", "exact", "predicted"]))
    machine = PRESETS[str(rng.choice(list(PRESETS)))]
    slower = {name: getattr(machine, name) * float(rng.uniform(0.0, 0.2))
              for name in ("gpu_launch_s", "cpu_row_s", "cpu_call_s", "sync_s")}  # fmt: skip
    return Case.of(
        config, profile, dataclasses.replace(machine, **slower), [mode] * config.layers, "bf16", "bf16", 64, None
    )


def whole_model_bytes(case: Case) -> int:
    """Of a budget in which everything is on the GPU."""
    return case.problem.fixed + case.problem.ends.nbytes + sum(own.whole[0] for own in case.problem.layers)
