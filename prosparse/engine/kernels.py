"""The choice of kernels at work: the decoder that has them, and what a run's steps counted on them.

On the CPU the exact and the dense kernel give the same bits, so a run may change over in its midst; where steps are
recorded, it keeps the choice of its start.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

from prosparse.kernels import cpu

from ..hardware import KeptTimes
from ..model.decoder import Decoder
from ..plan import STEP_ROWS, Plan
from ..sparsity import ExactFFN, PlainExactFFN, dense_twin
from .choice import Choice, TimesOf, Which, step_rows

EVERY = 128  # steps of a run between two looks at what they counted, each some 0.3 ms


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


class KernelChoice(Choice):
    """The choice of a loaded model.

    Args:
        decoder: with an exact block where the plan says exact.
        plan: its `dense_rows` are where the choice starts.
        times: of its FFNs; None leaves the choice as it is.
    """

    def __init__(self, decoder: Decoder, plan: Plan, times: TimesOf | None = None) -> None:
        self._exact, self._plan = decoder, plan
        self._twins = [dense_twin(ffn) for _, ffn in decoder.blocks]
        self._decoders: dict[Which, Decoder] = {(False,) * len(self._twins): decoder}
        config = decoder.config
        may_change = [twin is not None for twin in self._twins]
        super().__init__(
            [layer.dense_rows for layer in plan.layers], may_change, config.neurons, config.activation, times
        )

    @property
    def plan(self) -> Plan:
        """The plan, with the choice as it is now."""
        both = zip(self._plan.layers, self.dense_rows, strict=True)
        layers = tuple(dataclasses.replace(own, dense_rows=rows) for own, rows in both)
        return dataclasses.replace(self._plan, layers=layers)

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
        self._last = self._rows = self._steps = self._tokens = 0
        self._mixed = False
        self._dense: Which = ()
        self._decoder: Decoder | None = None
        self._ran: Counter[Which] = Counter()

    @property
    def ran(self) -> Counter[Which]:
        """How many steps were made on what."""
        return self._ran + Counter({self._dense: self._steps})

    def decoder(self, tokens: int) -> Decoder:
        """Of the next step, of so many tokens."""
        if self._decoder is None or tokens != self._last or self._steps >= EVERY and not self._frozen:
            self._turn(tokens)
        assert self._decoder is not None, "a turn finds one"
        return self._decoder

    def count(self, tokens: int) -> None:
        """A step of so many tokens was made."""
        self._steps += 1
        self._tokens += tokens

    def close(self) -> None:
        """The run is over."""
        self._tell()

    def _turn(self, tokens: int) -> None:
        rows, self._last = step_rows(tokens), tokens
        if rows == self._rows and (self._steps < EVERY or self._frozen):
            return
        if self._frozen:  # then nobody can tell apart what each number of tokens counted
            self._mixed = self._rows != 0
        self._tell()
        self._rows, self._dense = rows, self._start[rows] if self._frozen else self._choice.which(rows)
        self._decoder = self._choice.decoder(self._dense)

    def _tell(self) -> None:
        if self._steps and self._choice.learns and not self._mixed:
            done = self._read()
            both = zip(done, self._told, strict=True)
            fresh = [[now - before for now, before in zip(*own, strict=True)] for own in both]
            self._choice.learn(self._rows, self._dense, self._steps, self._tokens, fresh)
            self._told = done
        self._ran[self._dense] += self._steps
        self._steps = self._tokens = 0
