"""From which activation sparsity on an exact FFN is faster than a dense one: measured on this machine.

Near 0 % zeros an exact FFN reads what a dense one does, but knows what to read only once the gate is computed. A table
of both times by activation sparsity, for steps of so many tokens, says where the zeros begin to pay. It is measured
over the layers of a model that is loaded: they are of the right size, format and layout, lie in the memory that
decoding reads, and taken in turn they are as cold as they will be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prosparse.kernels.tally import new_tally

from ..errors import UserError

SPARSITIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
HIGHEST = SPARSITIES[-1]  # no crossover lies above: there exact is 1.1 to 2 times as fast in all formats (Zen 4)
UNMEASURED = 0.05  # the crossover where none was measured: so many zeros save 3 % of the bytes, what exact loses at 0
TIE = 0.01  # times that differ by less are equal: p10 of so few calls knows no better
LEAST_CALLS, MOST_CALLS, POINT_S = 12, 60, 0.15  # of each op for a point: as many as fit into that time
NO_TIME = 1e-9  # seconds: what a clock that stands still, or goes back, says of either op
SHARED = 0.5  # of the input's variance, between the tokens of a step, which so share more neurons than by chance


class Layer(Protocol):
    """An FFN block that can be timed at any activation sparsity."""

    def gate_of(self, x: Tensor) -> Tensor:
        """Pre-activations, [tokens, neurons] float32."""

    def at_threshold(self, x: Tensor, threshold: float, dense: bool, tally: Tensor) -> Tensor:
        """The op with gates that open from `threshold` on."""


@dataclass(frozen=True)
class Times:
    """Of steps of so many tokens.

    Args:
        sparsities: shares of neurons that no token of the step opens, ascending.
        dense_s, exact_s: seconds of an FFN at each.

    Raises:
        UserError: the lists are empty, of different lengths, not ascending, or hold what is no time.
    """

    sparsities: tuple[float, ...]
    dense_s: tuple[float, ...]
    exact_s: tuple[float, ...]

    def __post_init__(self) -> None:
        columns = (self.sparsities, self.dense_s, self.exact_s)
        if not self.sparsities or len({len(column) for column in columns}) > 1:
            raise UserError(f"times: need as many of each, got {[len(column) for column in columns]}")
        numbers = [number for column in columns for number in column]
        known = all(type(number) in (int, float) and np.isfinite(number) for number in numbers)
        if not known or min(self.dense_s + self.exact_s) <= 0 or list(self.sparsities) != sorted(set(self.sparsities)):
            raise UserError(f"times: need ascending sparsities and times above 0, got {columns}")

    @property
    def crossover(self) -> float:
        """The activation sparsity below which the dense op is faster; 0 where it never is."""
        ratios = [exact / dense for exact, dense in zip(self.exact_s, self.dense_s, strict=True)]
        # More zeros never make exact slower: what looks so is noise, and must not keep a sparse layer dense.
        ratios = [min(ratios[: i + 1]) for i in range(len(ratios))]
        slower = [i for i, ratio in enumerate(ratios) if ratio > 1 + TIE]
        if not slower:
            return 0.0
        last = slower[-1]
        if last + 1 == len(ratios):
            return self.sparsities[last]
        share = (ratios[last] - 1) / (ratios[last] - min(1.0, ratios[last + 1]))
        return self.sparsities[last] + share * (self.sparsities[last + 1] - self.sparsities[last])


@torch.inference_mode()
def measure_times(
    layers: Sequence[Layer],
    hidden: int,
    rows: int,
    sparsities: Sequence[float] = SPARSITIES,
    now: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time the dense and the exact op, call by call in turns; takes about a second.

    Args:
        layers: of one size and format, on the CPU.
        hidden: columns of their input.
        rows: tokens of a step.
        sparsities: of the table.
        now: the time in seconds.
    """
    rng = torch.Generator().manual_seed(0)
    x = SHARED**0.5 * torch.randn(1, hidden, generator=rng)
    x = x + (1 - SHARED) ** 0.5 * torch.randn(rows, hidden, generator=rng)
    opens = [layer.gate_of(x).amax(0).sort().values for layer in layers]
    points = [_point(layers, x, [_threshold(each, share) for each in opens], now) for share in sparsities]
    dense_s, exact_s = zip(*points, strict=True)
    return Times(tuple(sparsities), dense_s, exact_s)


def _threshold(ascending: Tensor, share: float) -> float:
    """What leaves this share of the neurons closed, given the largest pre-activation of each."""
    return float(ascending[min(round(share * len(ascending)), len(ascending) - 1)])


def _point(
    layers: Sequence[Layer], x: Tensor, thresholds: Sequence[float], now: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of a dense and of an exact op, p10."""
    tally, n = new_tally(x.device), len(layers)

    def call(number: int, dense: bool) -> Any:
        # half a round apart: an op that followed the other on the same layer would find it in the cache
        layer = (number + dense * (n // 2)) % n
        return layers[layer].at_threshold(x, thresholds[layer], dense, tally)

    samples: list[list[float]] = []
    end = now() + POINT_S
    while len(samples) < LEAST_CALLS or len(samples) < MOST_CALLS and now() < end:
        times = [now()]
        for dense in (True, False):
            call(len(samples), dense)
            times.append(now())
        samples.append([after - before for before, after in pairwise(times)])
    dense_s, exact_s = np.percentile(samples[1:], 10, axis=0)  # the first wakes the threads
    return max(float(dense_s), NO_TIME), max(float(exact_s), NO_TIME)
