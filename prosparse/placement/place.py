"""`place`: a Plan for two devices and a budget."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..config import ModelConfig
from ..errors import UserError
from ..hardware import Machine, show_size
from ..plan import LayerPlan, Placement, Plan, Split, fingerprint
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from .activity import Activity, activity_of
from .choose import LAYOUT, choose
from .latency import Latency
from .problem import Choice, Problem, ends_of, options_of
from .sizes import ENGINE, Host, Sizes, sizes_of
from .solve import solve


def place(
    config: ModelConfig,
    profile: Profile,
    machine: Machine,
    budget: int,
    *,
    mode: str = "auto",
    weights: str = "bf16",
    lm_head: str = "bf16",
    context: int = 512,
    predictor: Predictor | None = None,
    assumed_predictor: bool = False,
    host: Host = ENGINE,
) -> Plan:
    """The plan that is expected to be fastest within a budget of GPU memory.

    Args:
        config: the model.
        profile: its activation counts; who has the weights checks that they are of this model (`Profile.check_fits`).
        machine: what it is to run on.
        budget: bytes of GPU memory for everything: weights, cache, workspace, graph and the device's context. Where
            less is free, what is free.
        mode: "auto", or one of `plan.MODES`.
        weights, lm_head: formats.
        context: tokens that the cache has room for.
        predictor: for mode predicted.
        assumed_predictor: plan mode predicted without one, for a typical predictor: see `sizes` and `activity`.
        host: who is to run it.

    Returns:
        A plan whose layers all have a split: everything on the GPU where that fits, nothing where sharing loses.

    Raises:
        UserError: a budget with no room for a layer's attention (the message has the one that would do), or options
            that do not fit the model.
    """
    assumed = assumed_predictor and mode == "predicted" and predictor is None and config.activation.makes_zeros
    modes = [mode] * config.layers if assumed else [each.mode for each in choose(config, mode, predictor).layers]
    case = Case.of(config, profile, machine, modes, weights, lm_head, context, predictor, host)
    usable = min(budget, machine.gpu_bytes)
    least = case.least_budget
    if usable < least:
        free = "" if budget <= machine.gpu_bytes else f" (of which {show_size(usable)} are free)"
        raise UserError(
            f"plan: a budget of {show_size(budget)}{free} has no room for the attention of one layer beside the "
            f"device's context, the workspace and its cache of {context} tokens; pass at least {_round_up(least)}, or "
            "--device cpu"
        )
    return case.plan(solve(case.problem, usable), usable)


@dataclass(frozen=True, eq=False)
class Case:
    """A model on a machine: the problem, and how its answers become plans.

    Args:
        config: the model.
        profile: its activation counts.
        machine: what it runs on.
        modes: of each layer.
        sizes: of its parts.
        activity: of each layer.
        problem: what to choose from.
        weights, lm_head: formats.
        context: tokens of the cache.
    """

    config: ModelConfig
    profile: Profile
    machine: Machine
    modes: list[str]
    sizes: Sizes
    activity: list[Activity]
    problem: Problem
    weights: str
    lm_head: str
    context: int

    @classmethod
    def of(
        cls, config: ModelConfig, profile: Profile, machine: Machine, modes: list[str], weights: str, lm_head: str,
        context: int, predictor: Predictor | None, host: Host = ENGINE,
    ) -> Case:  # fmt: skip
        """Raises UserError where profile or predictor is of another shape, UnsupportedError for other FFNs."""
        profile.check_fits(fingerprint(config), profile.content, config.layers, config.neurons)
        sizes = sizes_of(config, weights, lm_head, context, _common(modes), predictor, host)
        latency = Latency(config, sizes, machine, weights, lm_head)
        activity = activity_of(profile, config, modes, predictor)
        layers = [
            options_of(latency, mode, own, nbytes)
            for mode, own, nbytes in zip(modes, activity, sizes.predictor, strict=True)
        ]
        problem = Problem(layers, ends_of(latency), machine.context_bytes + sizes.fixed, config.neurons)
        return cls(config, profile, machine, modes, sizes, activity, problem, weights, lm_head, context)

    def of_problem(self, problem: Problem) -> Case:
        """The same with other options."""
        return dataclasses.replace(self, problem=problem)

    @property
    def least_budget(self) -> int:
        """Bytes below which nothing runs on the GPU."""
        return self.problem.fixed + min(int(own.nbytes[0]) for own in self.problem.layers)

    def plan(self, choice: Choice, budget: int) -> Plan:
        """A choice as a plan."""
        splits = self.problem.splits(choice)
        placement = Placement(
            budget=budget,
            gpu_bytes=self.problem.nbytes(choice),
            context=self.context,
            weights=self.weights,
            lm_head=self.lm_head,
            head=choice.head,
            profile=self.profile.key,
            tokens_per_s=1 / self.problem.seconds(choice),
        )
        layers = tuple(LayerPlan(mode, LAYOUT, split) for mode, split in zip(self.modes, splits, strict=True))
        reason = _reason(splits, choice.head, self.config.neurons, show_size(budget))
        return Plan(fingerprint(self.config), layers, reason, placement)


def _common(modes: list[str]) -> str:
    return "predicted" if "predicted" in modes else modes[0]


def _reason(splits: list[Split], head: bool, neurons: int, budget: str) -> str:
    cpu = sum(not split.attention for split in splits)
    gpu = sum(split.hot == neurons for split in splits)
    if cpu == len(splits):
        return f"all on the CPU: with {budget} of GPU memory, sharing costs more than it brings"
    if gpu == len(splits):
        return f"all on the GPU: it fits into {budget}" + ("" if head else ", but for lm_head")
    shared = len(splits) - cpu - gpu
    parts = [
        f"{count} layer{'' if count == 1 else 's'} {what}"
        for count, what in ((gpu, "on the GPU"), (shared, "on both"), (cpu, "on the CPU"))
    ]
    return f"{', '.join(part for part in parts if not part.startswith('0 '))} within {budget} of GPU memory"


def _round_up(nbytes: int) -> str:
    """A size that is enough, in tenths of a GiB."""
    tenths = -(-nbytes * 10 // 2**30)
    return f"{tenths / 10:g}GiB"
