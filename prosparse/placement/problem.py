"""Placing as a problem of numbers: for each layer, pairs of bytes on the GPU and seconds, of which to choose one.

The first layers may be whole on the CPU; how many is a choice too. Those behind them have their attention on the GPU,
so that a token crosses from device to device once before them, and in every layer that both share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..plan import Split
from .activity import Activity, Array
from .latency import Latency

STEPS = 64  # cuts of a layer that are considered
# Sharing a layer is only taken to pay where it saves more than this share of it: so far the model is trusted.
TRUSTED = 0.05
ALIGNMENT = 16  # neurons: what a kernel takes at a time
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Options:
    """Of a layer whose attention is on the GPU: ways to cut its FFN, none of which another one beats in both respects.

    Args:
        nbytes: on the GPU, ascending, [options] int64.
        seconds: of the layer, descending, [options] float64.
        gate, hot: the cuts, [options] int64.
        cpu_s: of the layer where all of it is on the CPU.
        whole: bytes and seconds of the layer where all of it is on the GPU, which an option may beat.
    """

    nbytes: Whole
    seconds: Array
    gate: Whole
    hot: Whole
    cpu_s: float
    whole: tuple[int, float]

    @cached_property
    def hull(self) -> Whole:
        """Options on the lower convex hull of seconds over bytes: each step saves less per byte than the one before."""
        kept: list[int] = []
        for at in range(len(self.nbytes)):
            while len(kept) > 1 and self._slope(kept[-2], kept[-1]) >= self._slope(kept[-1], at):
                kept.pop()
            kept.append(at)
        return np.array(kept, dtype=np.int64)

    def fitting(self, nbytes: float) -> int:
        """The fastest option within so many bytes, -1 for none."""
        return int(np.searchsorted(self.nbytes, nbytes, side="right")) - 1

    def _slope(self, first: int, second: int) -> float:
        gained = self.seconds[second] - self.seconds[first]
        return float(gained / (self.nbytes[second] - self.nbytes[first]))


@dataclass(frozen=True, eq=False)
class Ends:
    """What is not a layer.

    Args:
        nbytes: of lm_head on the GPU.
        gpu_s, cpu_s: of lm_head on either device and the way from the last layer to a choice of token, where layers are
            on the GPU.
        alone_s: of lm_head on the CPU after layers that are all there.
        crossing_s: of the residual, once, on its way to the first layer on the GPU.
    """

    nbytes: int
    gpu_s: float
    cpu_s: float
    alone_s: float
    crossing_s: float


@dataclass(frozen=True, eq=False)
class Problem:
    """What to choose from.

    Args:
        layers: the options of each.
        ends: what is not a layer.
        fixed: bytes that anything on the GPU costs.
        neurons: of a layer.
    """

    layers: Sequence[Options]
    ends: Ends
    fixed: int
    neurons: int

    def seconds(self, choice: Choice) -> float:
        """Of a token."""
        cpu = sum(own.cpu_s for own in self.layers[: choice.on_cpu])
        if not choice.picks:
            return cpu + self.ends.alone_s
        rest = self.layers[choice.on_cpu :]
        gpu = sum(float(own.seconds[pick]) for own, pick in zip(rest, choice.picks, strict=True))
        return cpu + self.ends.crossing_s + gpu + (self.ends.gpu_s if choice.head else self.ends.cpu_s)

    def nbytes(self, choice: Choice) -> int:
        """On the GPU; none where nothing runs there."""
        if not choice.picks:
            return 0
        rest = self.layers[choice.on_cpu :]
        own = sum(int(own.nbytes[pick]) for own, pick in zip(rest, choice.picks, strict=True))
        return self.fixed + own + choice.head * self.ends.nbytes

    @cached_property
    def unshared(self) -> Problem:
        """The same, where each layer is whole on one device."""
        layers = []
        for own in self.layers:
            (nbytes, seconds), neurons = own.whole, np.array([self.neurons])
            layers.append(Options(np.array([nbytes]), np.array([seconds]), neurons, neurons, own.cpu_s, own.whole))
        return Problem(layers, self.ends, self.fixed, self.neurons)

    def splits(self, choice: Choice) -> list[Split]:
        """The choice as a plan has it."""
        rest = self.layers[choice.on_cpu :]
        chosen = [Split(int(own.gate[pick]), int(own.hot[pick])) for own, pick in zip(rest, choice.picks, strict=True)]
        return [Split(0, 0, attention=False)] * choice.on_cpu + chosen


@dataclass(frozen=True)
class Choice:
    """One answer.

    Args:
        on_cpu: first layers that are whole on the CPU.
        head: whether lm_head is on the GPU.
        picks: option of each further layer.
    """

    on_cpu: int
    head: bool
    picks: tuple[int, ...]


def options_of(latency: Latency, mode: str, own: Activity, predictor: int) -> Options:
    """The options of one layer.

    Args:
        latency: of the model on the machine.
        mode: of the layer.
        own: its activity.
        predictor: bytes of its predictor.
    """
    neurons, sizes = len(own.rows) - 1, latency.sizes
    step = -(-neurons // STEPS // ALIGNMENT) * ALIGNMENT
    cuts = np.append(np.arange(0, neurons, max(step, 1)), neurons)
    if mode == "exact":
        gate, hot = (each.ravel() for each in np.meshgrid(cuts, cuts, indexing="ij"))
        gate, hot = gate[hot <= gate], hot[hot <= gate]
    else:
        gate = hot = cuts  # a neuron is whole on one device, since all of its rows are read or none is
    nbytes = sizes.attention + sizes.cache + predictor + sizes.row * (gate + 2 * hot)
    seconds = (1 + TRUSTED) * (latency.attention(True) + latency.shared_ffn(mode, own, predictor, gate, hot))
    seconds[-1] = latency.attention(True) + latency.gpu_ffn(mode, own, predictor)  # all neurons: nothing is shared
    whole = int(nbytes[-1]), float(seconds[-1])
    order = np.lexsort((seconds, nbytes))
    best = np.minimum.accumulate(seconds[order])
    better = np.append(True, best[1:] < best[:-1])
    first = order[better]
    cpu = latency.attention(False) + latency.cpu_ffn(mode, own, predictor)
    return Options(nbytes[first].astype(np.int64), seconds[first], gate[first], hot[first], cpu, whole)


def ends_of(latency: Latency) -> Ends:
    """What lm_head and the way between the devices cost."""
    return Ends(
        nbytes=latency.sizes.head,
        gpu_s=latency.head(True) + latency.logits(),
        cpu_s=latency.head(False) + latency.crossing(),
        alone_s=latency.head(False),
        crossing_s=latency.crossing(),
    )
