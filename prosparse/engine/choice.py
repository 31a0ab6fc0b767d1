"""Which kernel computes an exact layer's steps: the exact one, or where few neurons are at zero the dense one.

A running mean of what decode steps counted says how many neurons are at zero, by layer and by the number of tokens of
a step, whose union is what must be read. Times measured on this machine say below which share the dense kernel is
faster. They are only asked for where a layer comes near it, and only measured between requests. On the CPU both kernels
give the same bits, so a run may change over in its midst; where steps are recorded, it keeps the choice of its start.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prosparse.kernels import cpu
from prosparse.kernels.tally import NONZERO, UP_ROWS

from ..hardware import HIGHEST, UNMEASURED, KeptTimes, Times
from ..model.decoder import Decoder
from ..plan import STEP_ROWS, Plan
from ..sparsity import ExactFFN, PlainExactFFN, dense_twin

log = logging.getLogger("prosparse")

EVERY = 64  # steps of a run between two looks at what they counted: a look costs what 1 % of a step does
LEAST, WINDOW = 64, 512  # steps that a mean must hold to be believed, and that it goes back at most
MARGIN = 0.05  # above the crossover where a layer becomes exact again, so that it does not go to and fro
Which = tuple[bool, ...]  # of each layer, whether the dense kernel computes it


def times_of(decoder: Decoder, plan: Plan) -> KeptTimes | None:
    """The times of a model's exact layers; None where it has none, or they are not on the CPU with its C++ kernels."""
    layers = [ffn for _, ffn in decoder.blocks if isinstance(ffn, ExactFFN | PlainExactFFN)]
    if not layers or decoder.device.type != "cpu" or not decoder.tiers.is_one or not cpu.available():
        return None
    facts = {
        "op": type(layers[0]).__name__,
        "format": layers[0].gate.format,
        "shape": str([len(layers), *layers[0].gate.shape]),
        "layout": ", ".join(sorted({layer.layout for layer in plan.layers})),
        "activation": str(dataclasses.replace(layers[0].activation, kind="relu", threshold=0.0)),
    }
    return KeptTimes(layers, decoder.config.hidden, facts)


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


class KernelChoice:
    """The choice of one model, which all its runs share.

    Args:
        decoder: with an exact block where the plan says exact.
        plan: its `dense_rows` are where the choice starts.
        times: of its FFNs; None leaves the choice as it is.
    """

    def __init__(self, decoder: Decoder, plan: Plan, times: TimesOf | None = None) -> None:
        self._exact, self._plan, self._times = decoder, plan, times
        self._twins = [dense_twin(ffn) for _, ffn in decoder.blocks]
        layers = len(self._twins)
        self._decoders: dict[Which, Decoder] = {(False,) * layers: decoder}
        self._dense: dict[int, Which] = {
            rows: tuple(rows in own.dense_rows for own in plan.layers) for rows in STEP_ROWS
        }
        self._means = {rows: Mean(opened=[None] * layers) for rows in STEP_ROWS}
        self._wanted: set[int] = set()
        self._lock = threading.RLock()

    @property
    def learns(self) -> bool:
        """Whether what runs count changes anything."""
        return self._times is not None and any(twin is not None for twin in self._twins)

    @property
    def plan(self) -> Plan:
        """The plan, with the choice as it is now."""
        dense = self._dense.copy()
        layers = tuple(
            dataclasses.replace(own, dense_rows=tuple(rows for rows in STEP_ROWS if dense[rows][layer]))
            for layer, own in enumerate(self._plan.layers)
        )
        return dataclasses.replace(self._plan, layers=layers)

    def which(self, tokens: int) -> Which:
        """What steps of so many tokens run on."""
        return self._dense[step_rows(tokens)]

    def decoder(self, dense: Which) -> Decoder:
        """The network with these layers dense, over the same weights."""
        with self._lock:
            if dense not in self._decoders:
                while len(self._decoders) > len(STEP_ROWS):  # the first, which is exact, stays
                    self._decoders.pop(list(self._decoders)[1])
                blocks = [
                    (attention, twin if is_dense and twin is not None else ffn)
                    for (attention, ffn), twin, is_dense in zip(self._exact.blocks, self._twins, dense, strict=True)
                ]
                self._decoders[dense] = self._exact.with_blocks(blocks)
            return self._decoders[dense]

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
        neurons = self._exact.config.neurons
        if not dense:
            return counted[UP_ROWS] / (steps * neurons)
        if self._exact.config.activation.on_up:  # what is zero may be so by its up projection, and its rows be read
            return None
        # The dense kernel counts by token. What tokens open by chance is the most that their union is.
        return 1 - (1 - min(1.0, counted[NONZERO] / (tokens * neurons))) ** (tokens / steps)

    def _choose(self, rows: int) -> None:
        assert self._times is not None, "who learns has times"
        opened = zip(self._means[rows].opened, self._twins, strict=True)
        zeros = [None if share is None or twin is None else 1 - share for share, twin in opened]
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
                    "engine: steps of up to %d tokens are computed by the %s kernel from now on in layers (neurons at "
                    "zero) %s: dense is faster below %.0f %%, with the same result",
                    rows, kernel, shares, 100 * crossover,
                )  # fmt: skip


class Follower:
    """One run's way through the choice.

    Args:
        choice: of the model.
        read: what its steps counted so far, see `Session.done`.
        frozen: the run keeps what was chosen at its start, and is read at its end: its steps are recorded, or run ahead
            of the host.
    """

    def __init__(self, choice: KernelChoice, read: Callable[[], list[list[int]]], frozen: bool) -> None:
        self._choice, self._read, self._frozen = choice, read, frozen
        self._start = {rows: choice.which(rows) for rows in STEP_ROWS}
        self._told = read() if choice.learns else []
        self._rows = self._steps = self._tokens = 0
        self._mixed = False
        self._dense: Which = ()
        self.ran: Counter[Which] = Counter()

    def decoder(self, tokens: int) -> Decoder:
        """Of the next step, of so many tokens."""
        rows = step_rows(tokens)
        if self._rows not in (0, rows) or (self._steps >= EVERY and not self._frozen):
            if self._frozen:
                self._mixed = True  # nobody can tell apart what each number of tokens counted
            else:
                self._tell()
        if rows != self._rows or not self._frozen:
            self._rows, self._dense = rows, self._start[rows] if self._frozen else self._choice.which(rows)
        return self._choice.decoder(self._dense)

    def count(self, tokens: int) -> None:
        """A step of so many tokens was made."""
        self._steps += 1
        self._tokens += tokens
        self.ran[self._dense] += 1

    def close(self) -> None:
        """The run is over."""
        if not self._mixed:
            self._tell()

    def _tell(self) -> None:
        if self._choice.learns and self._steps:
            done = self._read()
            both = zip(done, self._told, strict=True)
            fresh = [[now - before for now, before in zip(*own, strict=True)] for own in both]
            self._choice.learn(self._rows, self._dense, self._steps, self._tokens, fresh)
            self._told = done
        self._steps = self._tokens = 0
