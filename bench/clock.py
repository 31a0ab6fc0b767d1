"""One clock: subjects take turns, so that whatever else the machine does falls on all of them alike.

A turn is one call, or several where engines bring threads of their own: these spin for a while after their last call
and then sleep, so the first calls of a turn measure the change of engines and are not counted.

Neighbours only ever make a call slower. The fast decile (p10) is therefore the steadiest estimate of what the code can
do, and the one that is compared; the median is what a user of this machine gets, and is reported beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
LEAST_ROUNDS = 10  # fewer have no p10


@dataclass(frozen=True, eq=False)
class Timing:
    """Times of one subject.

    Args:
        us: microseconds of each call, in the order of the rounds.
        turn: calls in a row that a round has of it.
    """

    us: Samples
    turn: int = 1

    @property
    def p10(self) -> float:
        return float(np.percentile(self.us, 10))

    @property
    def median(self) -> float:
        return float(np.median(self.us))

    @property
    def p90(self) -> float:
        return float(np.percentile(self.us, 90))


@dataclass(frozen=True)
class Ratio:
    """A quotient of p10s with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def interleave(
    calls: Mapping[str, Callable[[int], object]],
    rounds: int,
    warm_up: int = 2,
    budget_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    now_ns: Callable[[], int] = time.perf_counter_ns,
    turn: int = 1,
    lead: int = 0,
) -> dict[str, Timing]:
    """Give every subject a turn each round: A B C A B C ...

    Args:
        calls: by name; each gets the number of its call, counted from 0 through the warm-up.
        rounds: how many are timed.
        warm_up: calls of each before that, one a turn.
        budget_s: stop early once the timed rounds took that long, but not before `LEAST_ROUNDS`.
        progress: called with (done, total) rounds.
        now_ns: the time.
        turn: calls of a turn that are timed.
        lead: calls before them that are not; they have the numbers before those of the turn.
    """
    samples: dict[str, list[int]] = {name: [] for name in calls}
    for number in range(warm_up):
        for call in calls.values():
            call(number)
    began = now_ns()
    for done in range(1, rounds + 1):
        first = warm_up + (done - 1) * turn
        for name, call in calls.items():
            for number in range(first - lead, first):
                call(number)
            for number in range(first, first + turn):
                start = now_ns()
                call(number)
                samples[name].append(now_ns() - start)
        if progress is not None:
            progress(done, rounds)
        if budget_s is not None and done >= LEAST_ROUNDS and now_ns() - began > budget_s * 1e9:
            break
    return {name: Timing(np.array(ns, dtype=np.float64) / 1e3, turn) for name, ns in samples.items()}


def speedup(base: Timing, other: Timing, resamples: int = 2000) -> Ratio:
    """How many times faster `other` is than `base`, p10 against p10.

    The interval is a paired bootstrap: whole rounds are drawn again, so that a slow second counts for both.
    """
    turn, rounds = base.turn, base.us.size // base.turn
    drawn = np.random.default_rng(0).integers(0, rounds, (resamples, rounds))
    picked = (drawn[:, :, None] * turn + np.arange(turn)).reshape(resamples, -1)
    quotients = np.percentile(base.us[picked], 10, axis=1) / np.percentile(other.us[picked], 10, axis=1)
    low, high = np.percentile(quotients, [2.5, 97.5])
    return Ratio(base.p10 / other.p10, float(low), float(high))
