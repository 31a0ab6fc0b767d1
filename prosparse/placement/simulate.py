"""A discrete-event simulation of decoding by a plan: what its token really waits for, if the machine is as described.

Every token draws which neurons are active. Work is queued on two resources, the GPU, whose queue has the copies in
both directions too, and the CPU, each of which does one thing at a time in order; work starts when its resource is free
and what it needs is there. So overlap, waiting and the CPU's idle turns come out of the queues, where `latency` has a
formula.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ..config import ModelConfig
from ..hardware import Machine
from ..plan import Plan, Split
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from .activity import named_over_active
from .latency import (
    ADD_LAUNCHES,
    ATTENTION_CALLS,
    ATTENTION_LAUNCHES,
    FFN_LAUNCHES,
    GUESS_LAUNCHES,
    HOT_LAUNCHES,
    LIST_LAUNCHES,
    NORM_LAUNCHES,
    Latency,
)
from .sizes import sizes_of

Draws = npt.NDArray[np.bool_]
TOKENS = 24


@dataclass(frozen=True)
class Simulated:
    """What came out, means over tokens.

    Args:
        tokens_per_s: of all tokens together.
        gpu_busy, cpu_busy: shares of the time.
        syncs: times a token waited for the link.
        skipped: share of the shared layers' turns in which nothing was asked of the CPU; None without shared layers.
        gpu_bytes, cpu_bytes: of weights and cache that a token read on either device.
        graphs: that the host launched for a token.
    """

    tokens_per_s: float
    gpu_busy: float
    cpu_busy: float
    syncs: float
    skipped: float | None
    gpu_bytes: float
    cpu_bytes: float
    graphs: float


@dataclass
class _Resource:
    """Does one thing at a time, in the order in which things are queued."""

    free_at: float = 0.0
    busy: float = 0.0
    nbytes: float = 0.0

    def run(self, after: float, seconds: float, nbytes: float = 0.0) -> float:
        """Queue work that needs what is there at `after`; returns when it is done."""
        self.free_at = max(self.free_at, after) + seconds
        self.busy += seconds
        self.nbytes += nbytes
        return self.free_at


@dataclass
class _Run:
    latency: Latency
    gpu: _Resource = field(default_factory=_Resource)
    cpu: _Resource = field(default_factory=_Resource)
    shared: int = 0
    skipped: int = 0
    syncs: int = 0
    graphs: int = 0

    def send(self, after: float, nbytes: float) -> float:
        """To the CPU, until it goes on; the GPU goes on before that."""
        self.syncs += 1
        return self.gpu.run(after, nbytes / self.latency.machine.to_cpu) + self.latency.machine.sync_s

    def bring(self, after: float, nbytes: float) -> float:
        """To the GPU, until it goes on, by a graph that the host launches."""
        self.syncs += 1
        self.graphs += 1
        return self.gpu.run(after + self.latency.machine.sync_s, nbytes / self.latency.machine.to_gpu)

    def on_gpu(self, after: float, launches: int, streamed: float, rows: float = 0, whole: float = 0) -> float:
        """Rows read in order, scattered rows, and bytes of something else."""
        machine, own = self.latency.machine, self.latency
        seconds = float(own.gpu_stream(streamed) + own.gpu_gather(rows)) + whole / machine.gpu_stream
        nbytes = (streamed + rows) * own.sizes.row + whole
        return self.gpu.run(after, launches * machine.gpu_launch_s + seconds, nbytes)

    def on_cpu(self, after: float, calls: int, streamed: float, rows: float = 0, whole: float = 0) -> float:
        """The same there."""
        machine, own = self.latency.machine, self.latency
        seconds = float(own.cpu_stream(streamed) + own.cpu_gather(rows)) + whole / machine.cpu_stream
        nbytes = (streamed + rows) * own.sizes.row + whole
        return self.cpu.run(after, calls * machine.cpu_call_s + seconds, nbytes)


def simulate(
    config: ModelConfig,
    plan: Plan,
    profile: Profile,
    machine: Machine,
    *,
    predictor: Predictor | None = None,
    tokens: int = TOKENS,
    together: float = 0.0,
    seed: int = 0,
) -> Simulated:
    """Decode some tokens at a full cache.

    Args:
        config: the model.
        plan: with a placement.
        profile: how often neurons are active.
        machine: what it runs on.
        predictor: of the plan's predicted layers; None stands for one that names what `activity.NAMED` says.
        tokens: how many.
        together: how much neurons are active together, 0 for independently to 1: the correlation of the normal numbers
            that decide.
        seed: the same gives the same active neurons for every plan.
    """
    placement = plan.placement
    assert placement is not None, "there is nothing to simulate without a placement"
    plan.check_fits(config)
    sizes = sizes_of(config, placement.weights, placement.lm_head, placement.context, plan.mode, predictor)
    run = _Run(Latency(config, sizes, machine, placement.weights, placement.lm_head))
    frequency = profile.frequency
    hot_first = [frequency[layer][profile.hot_first(layer)] for layer in range(config.layers)]
    thresholds = [torch.special.ndtri(1 - own.clamp(1e-12, 1 - 1e-12)).numpy() for own in hot_first]
    over = [named_over_active(predictor, layer) for layer in range(config.layers)]
    named = [
        torch.special.ndtri(1 - (own * f).clamp(1e-12, 1 - 1e-12)).numpy()
        for own, f in zip(hot_first, over, strict=True)
    ]
    rng, now = np.random.default_rng(seed), 0.0
    for _ in range(tokens):
        on_cpu = True
        for layer, how in enumerate(plan.layers):
            assert how.split is not None, "every layer of a plan with a placement has a split"
            drawn = np.sqrt(1 - together) * rng.standard_normal(config.neurons, dtype=np.float32)
            drawn += np.sqrt(together) * rng.standard_normal()
            if how.split.attention and on_cpu:
                now, on_cpu = run.bring(now, 4 * config.hidden), False
            active, guessed = drawn > thresholds[layer], drawn > named[layer]
            now = _layer(run, now, how.mode, how.split, active, guessed, sizes.predictor[layer])
        now = _head(run, now, placement.head, on_cpu)
    return _summary(run, now, tokens)


def _layer(run: _Run, now: float, mode: str, split: Split, active: Draws, named: Draws, predictor: int) -> float:
    neurons, sizes = len(active), run.latency.sizes
    if not split.attention:
        now = run.on_cpu(now, ATTENTION_CALLS, sizes.attention / sizes.row, whole=sizes.cache)
        return run.on_cpu(now, *_whole(mode, active, named), whole=predictor)
    now = run.on_gpu(now, ATTENTION_LAUNCHES, sizes.attention / sizes.row, whole=sizes.cache)
    if split.hot == neurons:
        _, streamed, rows = _whole(mode, active, named)
        return run.on_gpu(now, FFN_LAUNCHES[mode], streamed, rows, predictor)
    return _shared(run, now, mode, split, active, named, predictor)


def _whole(mode: str, active: Draws, named: Draws) -> tuple[int, float, float]:
    """Calls, rows read in order and scattered rows of neurons that are on one device."""
    if mode == "dense":
        return 1, 3 * len(active), 0
    if mode == "exact":
        return 1, len(active), 2 * _count(active)
    return 1, 0, _count(named) + 2 * _count(active)


def _shared(run: _Run, now: float, mode: str, split: Split, active: Draws, named: Draws, predictor: int) -> float:
    gate, hot, x = split.gate, split.hot, 4 * run.latency.config.hidden
    between, neurons = gate - hot, len(active)
    run.shared += 1
    starts_early = mode != "predicted" and 0 < between and gate < neurons
    listed = run.on_gpu(now, NORM_LAUNCHES, 0)
    there, sent = listed, x
    if starts_early:
        there, sent = run.send(there, x), 0
        run.graphs += 1
    if mode == "predicted":
        listed, sent = run.on_gpu(listed, GUESS_LAUNCHES, 0, whole=predictor), sent + 4 * neurons
    if between:
        listed, sent = run.on_gpu(listed, LIST_LAUNCHES, between), sent + 8 * between
    listed = run.send(listed, sent)
    if hot:
        _, streamed, rows = _whole(mode, active[:hot], named[:hot])
        run.on_gpu(now, HOT_LAUNCHES[mode], streamed, rows)
        run.graphs += 1
    asked = 3 * between if mode == "dense" else 2 * _count(active[hot:gate])
    _, streamed, rows = _whole(mode, active[gate:], named[gate:])
    if not starts_early:
        there = listed
    if streamed or rows:
        there = run.on_cpu(there, 1, streamed, rows)
    there = max(there, listed)
    if asked:
        there = run.on_cpu(there, 1, 0, asked)
    elif not streamed and not rows:
        run.skipped += 1
    return run.on_gpu(run.bring(there, x), ADD_LAUNCHES, 0)


def _head(run: _Run, now: float, head: bool, on_cpu: bool) -> float:
    latency = run.latency
    if head:
        now = run.gpu.run(now, latency.head(True), latency.sizes.head)
        return run.send(now, 4 * latency.config.vocab)
    if not on_cpu:
        now = run.send(now, 4 * latency.config.hidden)
    return run.cpu.run(now, latency.head(False), latency.sizes.head)


def _summary(run: _Run, now: float, tokens: int) -> Simulated:
    return Simulated(
        tokens_per_s=tokens / now,
        gpu_busy=run.gpu.busy / now,
        cpu_busy=run.cpu.busy / now,
        syncs=run.syncs / tokens,
        skipped=run.skipped / run.shared if run.shared else None,
        gpu_bytes=run.gpu.nbytes / tokens,
        cpu_bytes=run.cpu.nbytes / tokens,
        graphs=run.graphs / tokens,
    )


def _count(drawn: Draws) -> int:
    return int(np.count_nonzero(drawn))
