"""Which kernel computes an exact layer's steps: the exact one, or where few neurons are at zero the dense one.

A running mean of what decode steps counted says how many neurons are at zero, by layer and by the number of tokens of
a step, whose union is what must be read. Times measured on this machine say below which share the dense kernel is
faster. They are only asked for where a layer comes near it, and only measured between requests.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import NONZERO, UP_ROWS

from ..hardware import HIGHEST, UNMEASURED, Times
from ..plan import STEP_ROWS

log = logging.getLogger("prosparse")

LEAST, WINDOW = 64, 512  # steps that a mean must hold to be believed, and that it goes back at most
MARGIN = 0.05  # above the crossover where a layer becomes exact again, so that it does not go to and fro
Which = tuple[bool, ...]  # of each layer, whether the dense kernel computes it


class TimesOf(Protocol):
    """See `hardware.KeptTimes`."""

    def known(self, rows: int) -> Times | None: ...

    def measured(self, rows: int) -> Times: ...


@dataclass
class Mean:
    """Of steps of so many tokens: the share of its neurons that each layer opens; None before it is known."""

    steps: int = 0
    opened: list[float | None] = field(default_factory=list)


def step_rows(tokens: int) -> int:
    """Which of `STEP_ROWS` stands for steps of so many tokens."""
    return next(rows for rows in STEP_ROWS if tokens <= rows)


class Choice:
    """The choice of one model, which all its runs share.

    Args:
        dense_rows: of each layer, where it starts: see `plan.LayerPlan`.
        may_change: which layers have both kernels.
        neurons, activation: of each layer.
        times: of its FFNs; None leaves the choice as it is.
    """

    def __init__(
        self,
        dense_rows: Sequence[Sequence[int]],
        may_change: Sequence[bool],
        neurons: int,
        activation: Activation,
        times: TimesOf | None,
    ) -> None:
        self._dense: dict[int, Which] = {rows: tuple(rows in own for own in dense_rows) for rows in STEP_ROWS}
        self._may_change, self._neurons, self._on_up, self._times = may_change, neurons, activation.on_up, times
        self._means = {rows: Mean(opened=[None] * len(may_change)) for rows in STEP_ROWS}
        self._wanted: set[int] = set()
        self._lock = threading.RLock()

    @property
    def learns(self) -> bool:
        """Whether what runs count changes anything."""
        return self._times is not None and any(self._may_change)

    @property
    def dense_rows(self) -> list[tuple[int, ...]]:
        """Of each layer, as it is now."""
        dense = self._dense.copy()
        return [tuple(rows for rows in STEP_ROWS if dense[rows][layer]) for layer in range(len(self._may_change))]

    def which(self, tokens: int) -> Which:
        """What steps of so many tokens run on."""
        return self._dense[step_rows(tokens)]

    def learn(self, rows: int, dense: Which, steps: int, tokens: int, counted: Sequence[Sequence[int]]) -> None:
        """Take in what some steps counted, and choose anew if what is known allows it.

        Args:
            rows: which of `STEP_ROWS` they belong to.
            dense: what they ran on.
            steps, tokens: how many.
            counted: per layer, see `kernels.tally`.
        """
        with self._lock:
            mean = self._means[rows]
            mean.steps += steps
            weight = min(1.0, steps / min(mean.steps, WINDOW))
            for layer, own in enumerate(counted):
                opened = self._opened(own, dense[layer], steps, tokens)
                before = mean.opened[layer]
                if opened is not None:
                    mean.opened[layer] = opened if before is None else before + weight * (opened - before)
            if mean.steps >= LEAST:
                self._choose(rows)

    def settle(self) -> None:
        """Between requests: measure what runs have asked for, and choose by it."""
        with self._lock:
            while self._times is not None and self._wanted:
                rows = self._wanted.pop()
                self._times.measured(rows)
                self._choose(rows)

    def _opened(self, counted: Sequence[int], dense: bool, steps: int, tokens: int) -> float | None:
        """The share of the neurons that a step opened; None where the counts do not say."""
        neurons = self._neurons
        if not dense:
            return counted[UP_ROWS] / (steps * neurons)
        if self._on_up:  # what is zero may be so by its up projection, and its rows be read
            return None
        # The dense kernel counts by token. What tokens open by chance is the most that their union is.
        return 1 - (1 - min(1.0, counted[NONZERO] / (tokens * neurons))) ** (tokens / steps)

    def _choose(self, rows: int) -> None:
        assert self._times is not None, "who learns has times"
        opened = zip(self._means[rows].opened, self._may_change, strict=True)
        zeros = [1 - share if may_change and share is not None else None for share, may_change in opened]
        before, times = self._dense[rows], self._times.known(rows)
        if times is None and any(z is not None and z < HIGHEST for z in zeros):
            self._wanted.add(rows)
        crossover = UNMEASURED if times is None else times.crossover
        back = HIGHEST if times is None else crossover + MARGIN
        after = tuple(
            was if z is None else z <= back if was else z < crossover for was, z in zip(before, zeros, strict=True)
        )
        self._dense[rows] = after
        for kernel, is_dense in (("dense", True), ("exact", False)):
            changed = [i for i, now in enumerate(after) if now == is_dense != before[i]]
            if changed:
                shares = ", ".join(f"{i} ({zeros[i]:.0%})" for i in changed)
                log.info(
                    "engine: the %s kernel now computes steps of %s in layers (with so many neurons at zero) %s; below "
                    "%.1f%% dense is faster, with the same result",
                    kernel, f"up to {rows} tokens" if rows > 1 else "1 token", shares, 100 * crossover,
                )  # fmt: skip
