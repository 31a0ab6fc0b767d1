"""What a person wants to know of a plan: where the bytes are, what they cover, and how fast other ways would be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import UserError
from ..hardware import Machine
from ..plan import Plan
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from .place import Case
from .problem import Choice
from .simulate import simulate
from .solve import layer_split


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Args:
        name: for a person.
        tokens_per_s: expected by the latency model.
        simulated: by the simulator; None where it was not asked.
    """

    name: str
    tokens_per_s: float
    simulated: float | None = None


@dataclass(frozen=True)
class Explanation:
    """A plan explained.

    Args:
        gpu, cpu: bytes by part.
        covered: share of the activations whose up and down rows are on the GPU.
        ways: this plan first.
    """

    gpu: dict[str, int]
    cpu: dict[str, int]
    covered: float
    ways: tuple[Way, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def explain(
    config: ModelConfig,
    plan: Plan,
    profile: Profile,
    machine: Machine,
    predictor: Predictor | None = None,
    simulated: bool = False,
) -> Explanation:
    """Explain a plan.

    Args:
        config: the model.
        plan: of it, with a placement.
        profile: the one it was made with.
        machine: what it is to run on.
        predictor: the one it was made with.
        simulated: whether the ways are simulated as well.

    Raises:
        UserError: a plan of another model or profile, or for one device.
    """
    plan.check_fits(config)
    placement = plan.placement
    if placement is None:
        raise UserError("plan: has no placement, so there is nothing to explain; make one with `prosparse plan`")
    if placement.profile != profile.key:
        raise UserError(
            f"plan: made with profile {placement.profile}, but this one is {profile.key} (counted on another text or "
            "for other weights); make the plan again"
        )
    modes = [layer.mode for layer in plan.layers]
    case = Case.of(config, profile, machine, modes, placement.weights, placement.lm_head, placement.context, predictor)
    usable = min(placement.budget, machine.gpu_bytes)
    unshared, split = layer_split(case.problem, usable)
    alone = Choice(config.layers, False, ())
    others = {
        f"layer split, {config.layers - split.on_cpu} of {config.layers} on the GPU": (
            case.of_problem(unshared),
            split,
        ),
        "all on the CPU": (case, alone),
    }
    ways = [_way("this plan", plan, case, simulated, predictor)]
    ways += [_way(name, own.plan(choice, usable), own, simulated, predictor) for name, (own, choice) in others.items()]
    ways.append(Way("bound: every byte at full speed", 1 / bound_s(case, usable)))
    return Explanation(*_tiers(case, plan), _covered(profile, plan), tuple(ways))


def bound_s(case: Case, budget: int) -> float:
    """Seconds that no plan beats: what is read most often is on the GPU, both devices read all the time, none waits.

    Args:
        case: the model on a machine.
        budget: bytes.
    """
    config, sizes, machine = case.config, case.sizes, case.machine
    reads, holds = [np.array([float(sizes.head)])], [np.array([float(sizes.head)])]
    for layer, (mode, own) in enumerate(zip(case.modes, case.activity, strict=True)):
        whole = np.array([float(sizes.attention + sizes.cache + sizes.predictor[layer])])
        row = np.full(config.neurons, float(sizes.row))
        gate = np.diff(own.named) if mode == "predicted" else np.ones(config.neurons)
        rows = np.full(config.neurons, 2.0) if mode == "dense" else np.diff(own.rows)
        reads += [whole, gate * row, rows * row]
        holds += [whole, row, 2 * row]
    read, held = np.concatenate(reads), np.concatenate(holds)
    order = np.argsort(-read / held, kind="stable")
    room = budget - case.problem.fixed - np.cumsum(held[order])
    cold = float(read[order][room < 0].sum())
    return max(cold / machine.cpu_stream, float(read.sum()) / (machine.cpu_stream + machine.gpu_stream))


def _way(name: str, plan: Plan, case: Case, simulated: bool, predictor: Predictor | None) -> Way:
    assert plan.placement is not None, "plans of a case have a placement"
    found = None
    if simulated:
        found = simulate(case.config, plan, case.profile, case.machine, predictor=predictor).tokens_per_s
    return Way(name, plan.placement.tokens_per_s, found)


def _tiers(case: Case, plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part on the GPU and on the CPU."""
    config, sizes, placement = case.config, case.sizes, plan.placement
    assert placement is not None, "checked before"
    splits = [layer.split for layer in plan.layers if layer.split is not None]
    here = sum(split.attention for split in splits)
    gate, hot = sum(split.gate for split in splits), sum(split.hot for split in splits)
    neurons = config.layers * config.neurons
    predictors = sum(own for own, split in zip(sizes.predictor, splits, strict=True) if split.attention)
    gpu = {
        "attention": here * sizes.attention,
        "cache": here * sizes.cache,
        "gate": gate * sizes.row,
        "up and down": 2 * hot * sizes.row,
        "predictor": predictors,
        "lm_head": placement.head * sizes.head,
        "workspace and graph": sizes.fixed if here else 0,
        "device context": case.machine.context_bytes if here else 0,
    }
    cpu = {
        "attention": (config.layers - here) * sizes.attention,
        "cache": (config.layers - here) * sizes.cache,
        "gate": (neurons - gate) * sizes.row,
        "up and down": 2 * (neurons - hot) * sizes.row,
        "predictor": sum(sizes.predictor) - predictors,
        "lm_head": (not placement.head and not config.tied_embeddings) * sizes.head,
        "embedding": sizes.embedding,
    }
    assert sum(gpu.values()) == placement.gpu_bytes, "every byte that a plan takes belongs to a part"
    return gpu, cpu


def _covered(profile: Profile, plan: Plan) -> float:
    """Share of all activations that are of hot neurons."""
    counts = profile.counts.sort(1, descending=True).values
    hot = [0 if layer.split is None else layer.split.hot for layer in plan.layers]
    return sum(int(own[:n].sum()) for own, n in zip(counts, hot, strict=True)) / max(1, int(counts.sum()))
