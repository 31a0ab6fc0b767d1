"""A discrete-event simulation of decoding by a plan: what its token really waits for, if the machine is as described.

Every token draws which neurons are active. Work is queued on four resources, the GPU, the CPU and the link in either
direction, each of which does one thing at a time in order; work starts when its resource is free and what it needs is
there. So overlap, waiting and the CPU's idle turns come out of the queues, where `latency` has a formula.
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
from .latency import ATTENTION_CALLS, ATTENTION_LAUNCHES, Latency
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
    """

    tokens_per_s: float
    gpu_busy: float
    cpu_busy: float
    syncs: float
    skipped: float | None
    gpu_bytes: float
    cpu_bytes: float


@dataclass
class _Resource:
    """Does one thing at a time, in the order in which things are queued."""

    free_at: float = 0.0
    busy: float = 0.0
    nbytes: float = 0.0
    uses: int = 0

    def run(self, after: float, seconds: float, nbytes: float = 0.0) -> float:
        """Queue work that needs what is there at `after`; returns when it is done."""
        self.free_at = max(self.free_at, after) + seconds
        self.busy += seconds
        self.nbytes += nbytes
        self.uses += 1
        return self.free_at


@dataclass
class _Run:
    latency: Latency
    gpu: _Resource = field(default_factory=_Resource)
    cpu: _Resource = field(default_factory=_Resource)
    out: _Resource = field(default_factory=_Resource)
    back: _Resource = field(default_factory=_Resource)
    shared: int = 0
    skipped: int = 0

    def send(self, after: float, nbytes: float) -> float:
        """To the CPU, until it goes on."""
        return self.out.run(after, self.latency.machine.sync_s + nbytes / self.latency.machine.to_cpu)

    def bring(self, after: float, nbytes: float) -> float:
        """To the GPU, until it goes on."""
        return self.back.run(after, self.latency.machine.sync_s + nbytes / self.latency.machine.to_gpu)

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
        calls, streamed, rows = _whole(mode, active, named)
        return run.on_gpu(now, calls + 1, streamed, rows, predictor)
    return _shared(run, now, mode, split, active, named, predictor)


def _whole(mode: str, active: Draws, named: Draws) -> tuple[int, float, float]:
    """Calls, rows read in order and scattered rows of neurons that are on one device."""
    if mode == "dense":
        return 1, 3 * len(active), 0
    if mode == "exact":
        return 1, len(active), 2 * _count(active)
    return 1, 0, _count(named) + 2 * _count(active)


def _shared(run: _Run, now: float, mode: str, split: Split, active: Draws, named: Draws, predictor: int) -> float:
    gate, hot, hidden = split.gate, split.hot, run.latency.config.hidden
    run.shared += 1
    there = run.send(now, 4 * hidden)
    listed, between = now, gate - hot
    if mode == "predicted":
        scanned = run.on_gpu(now, 1, 0, whole=predictor)
        there = max(there, run.send(scanned, 4 * len(active)))
    if between:
        scanned = run.on_gpu(now, 1, between)
        listed = run.send(scanned, 8 * between)
    done = now
    if hot:
        _, streamed, rows = _whole(mode, active[:hot], named[:hot])
        done = run.on_gpu(now, 2, streamed, rows)
    asked = 3 * between if mode == "dense" else 2 * _count(active[hot:gate])
    _, streamed, rows = _whole(mode, active[gate:], named[gate:])
    if not asked and not streamed and not rows:
        run.skipped += 1
        return max(done, there, listed)
    if streamed or rows:
        there = run.on_cpu(there, 1, streamed, rows)
    if asked:
        there = run.on_cpu(max(there, listed), 1, 0, asked)
    return run.on_gpu(max(done, run.bring(there, 4 * hidden)), 1, 0)


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
        syncs=(run.out.uses + run.back.uses) / tokens,
        skipped=run.skipped / run.shared if run.shared else None,
        gpu_bytes=run.gpu.nbytes / tokens,
        cpu_bytes=run.cpu.nbytes / tokens,
    )


def _count(drawn: Draws) -> int:
    return int(np.count_nonzero(drawn))
