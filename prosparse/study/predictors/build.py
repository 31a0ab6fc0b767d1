"""`build`: a predictor without training, calibrated to a recall or to a divergence.

Two to three passes over the calibration text: inputs of the gates (low_rank), lines of gate over score, curves of
margin against recall. A layer is predicted only where that is expected to pay:

    bytes of predictor + predicted share * bytes of gate <= (1 - LEAST_GAIN) * bytes of gate

Decode is bound by the bytes it reads; up and down are read for the same neurons either way. With a machine seconds are
compared in place of bytes: `cost`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine import Engine
from ...errors import UnsupportedError, UserError
from ...hardware import Machine
from ...weights.predictor import KINDS, LayerPredictor, Predictor
from ..measure.engine_subject import EngineSubject
from ..watch import AnyFFN, open_ffns, pre_activation
from .calibration import TOKENS, Calibration, Progress, read
from .cost import Bytes, Cost, cost_on
from .guess import Guess, Line
from .low_rank import Moments, check_format, guesses, parts, ranks_to_try
from .target import at_divergence

RECALL = {"auto": 0.99, "low_rank": 0.99, "low_bit_gate": 0.999, "sign_bits": 0.99}
LEAST_GAIN = 0.1  # of the gate's bytes: below, the further op costs what it saves
MANY = 3  # guesses of a layer that are scored on every token; twice as many on every second one
MOMENTS_BYTES = 2 << 30  # of memory for covariances at a time; more layers take further passes


@dataclass
class Layer:
    """One layer while its predictor is made.

    Args:
        ffn: of the layer.
        choices: guesses of which the cheapest that reaches the target is taken.
        mass_scale: length of every neuron's row of down, [neurons] float32.
    """

    ffn: AnyFFN
    choices: list[Guess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mass_scale = self.ffn.down.values().norm(dim=1)

    def pick(self, recall: float, within: float, cost: Cost) -> tuple[Guess, float, bool]:
        """The guess that is expected to cost least at this recall, its margin, and whether it pays.

        Guesses that predict more than `within` of the neurons beyond the active ones come last, and do not pay.
        """
        found = []
        for number, guess in enumerate(self.choices):
            margin = guess.curve.margin(recall)
            gate = self.ffn.gate
            share = cost.predicted(guess.selector.guess, guess.curve.predicted(margin), gate) / cost.exact(gate)
            too_many = guess.curve.predicted(margin) - guess.curve.active_share() > within
            found.append((too_many, share, number, margin))
        too_many, share, number, margin = min(found)
        return self.choices[number], margin, not too_many and share <= 1 - LEAST_GAIN


@dataclass(frozen=True, eq=False)
class Prepared:
    """Guesses that only lack their thresholds: predictors at any target can be had of it at once.

    Args:
        engine: the model.
        layers: one for each of its layers, with curves.
        calibration: the text.
        kind: what was asked for.
        within: see `build`.
        about: how the guesses were made.
        cost: what is to be small.
    """

    engine: Engine
    layers: Sequence[Layer]
    calibration: Calibration
    kind: str
    within: float
    about: dict[str, Any]
    cost: Cost = field(default_factory=Bytes)

    def at_recall(self, recall: float | None = None) -> Predictor:
        """The cheapest predictor of each layer that reaches a recall; None is the one of `RECALL`."""
        recall = RECALL[self.kind] if recall is None else recall
        facts = EngineSubject(self.engine).facts
        made: list[LayerPredictor | None] = []
        rows = []
        for own in self.layers:
            guess, margin, used = own.pick(recall, self.within, self.cost)
            made.append(guess.at(margin) if used else None)
            curve = guess.curve
            row = {
                "recall": curve.recall(margin),
                "predicted_sparsity": 1 - curve.predicted(margin),
                "activation_sparsity": 1 - curve.active_share(),
                "missed_mass": curve.missed_mass(margin),
                "bytes_of_gate": guess.expected_bytes(margin, own.ffn.gate) / own.ffn.gate.nbytes,
            }
            how = {"used": used, "kind": guess.predictor.kind, "rank": guess.predictor.rank}
            rows.append(how | {name: round(value, 6) for name, value in row.items()})
        about = self.about | {"kind": self.kind, "target_recall": recall, "layers": rows}
        return Predictor(tuple(made), facts.fingerprint, facts.content, about)

    def at_divergence(self, target: float, progress: Progress | None = None) -> Predictor:
        """The one of the lowest recall that keeps to a divergence from exact, in nats per token."""
        return at_divergence(self.engine, self.at_recall, target, self.calibration.check, progress)


def build(
    engine: Engine,
    kind: str = "low_rank",
    *,
    rank: int | str = "auto",
    target_recall: float | None = None,
    target_kl: float | None = None,
    within: float = 1.0,
    text: str | Path | None = None,
    tokens: int = TOKENS,
    weights: str = "auto",
    machine: Machine | str | None = None,
    progress: Progress | None = None,
) -> Predictor:
    """Make a predictor from a model and some text.

    Args:
        engine: the model, in the weight format that it will run in.
        kind: one of `prosparse.weights.predictor.KINDS`; or "auto": per layer, what is expected to read the fewest
            bytes.
        rank: of low_rank, or "auto": per layer, the same.
        target_recall: per layer, on calibration windows; None is the one of `RECALL`.
        target_kl: instead, in nats per token against exact: the lowest recall, one for all layers, that keeps to it.
        within: a layer that predicts more than this share of its neurons beyond the active ones stays exact.
        text: a UTF-8 file; None is the packaged calibration excerpt.
        tokens: of it, about.
        weights: format of low_rank's matrices; "auto" is int8 for the first and int4 for the second.
        machine: whose seconds decide, in place of bytes, what each layer runs: "this", which is measured, a preset, a
            description file, or a Machine.
        progress: called with (what, done, total).

    Raises:
        UserError: wrong options or text.
        UnsupportedError: a model whose activation makes no zeros.
    """
    check_targets(target_recall, target_kl, within)
    prepared = prepare(
        engine, kind, rank=rank, within=within, text=text, tokens=tokens, weights=weights, machine=machine,
        progress=progress,
    )  # fmt: skip
    if target_kl is not None:
        return prepared.at_divergence(target_kl, progress)
    return prepared.at_recall(target_recall)


def prepare(
    engine: Engine,
    kind: str = "low_rank",
    *,
    rank: int | str = "auto",
    within: float = 1.0,
    text: str | Path | None = None,
    tokens: int = TOKENS,
    weights: str = "auto",
    machine: Machine | str | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """All of `build` but the choice of a target."""
    check_options(engine, kind, rank, weights)
    cost = cost_on(machine)
    calibration = Calibration.of(engine, text, tokens)
    layers = [Layer(ffn) for ffn in open_ffns(engine)]
    for number, found in enumerate(_candidates(engine, kind, rank, weights, calibration, layers, progress)):
        layers[number].choices = [Guess.of(own, layers[number].ffn.gate) for own in found]
    fit_lines(engine, layers, calibration.fit, progress)
    for own in layers:
        own.choices += [_with_one_offset(guess) for guess in own.choices if guess.predictor.kind == "sign_bits"]
    fit_curves(engine, layers, calibration.check, progress)
    about = {"made_by": "build", "text": calibration.text, "tokens": calibration.tokens, "weights": engine.weights}
    return Prepared(engine, layers, calibration, kind, within, about | {"chosen_by": cost.unit}, cost)


def check_options(engine: Engine, kind: str, rank: int | str, weights: str) -> None:
    """Raise UserError for what cannot be made of a model."""
    if not engine.config.activation.makes_zeros:
        raise UnsupportedError(
            f"predictor: {engine.config.activation} makes no exact zeros, so there is nothing to predict; "
            "use a ReLU, FATReLU or dReLU model"
        )
    if kind not in ("auto", *KINDS):
        raise UserError(f"predictor: kind is {kind!r}; supported are auto, {', '.join(KINDS)}")
    if kind in ("auto", "low_rank"):
        ranks_to_try(rank, engine.config.hidden, engine.config.neurons)
    elif rank != "auto" or weights != "auto":
        raise UserError(f"predictor: rank and weights are for low_rank; {kind} is made from the gate as it is")
    check_format(weights)


def check_targets(recall: float | None, kl: float | None, within: float) -> None:
    """Raise UserError for targets that are none."""
    if recall is not None and kl is not None:
        raise UserError("predictor: target_recall and target_kl exclude each other; pass one")
    if recall is not None and not 0 < recall <= 1:
        raise UserError(f"predictor: target_recall must be above 0 and at most 1, got {recall!r}")
    if kl is not None and not 0 < kl < float("inf"):
        raise UserError(f"predictor: target_kl must be above 0 nats per token, got {kl!r}")
    if not 0 <= within <= 1:
        raise UserError(f"predictor: within must be from 0 to 1, a share of the neurons, got {within!r}")


def _candidates(
    engine: Engine,
    kind: str,
    rank: int | str,
    weights: str,
    calibration: Calibration,
    layers: Sequence[Layer],
    progress: Progress | None,
) -> Iterator[list[LayerPredictor]]:
    config = engine.config
    free = KINDS[1:] if kind == "auto" else (kind,) if kind != "low_rank" else ()
    plain = [LayerPredictor(own, torch.zeros(config.neurons)) for own in free]
    if kind in free:
        yield from (plain for _ in layers)
        return
    ranks = ranks_to_try(rank, config.hidden, config.neurons)
    at_once = max(1, MOMENTS_BYTES // (8 * config.hidden**2))
    for start in range(0, len(layers), at_once):
        group = range(start, min(start + at_once, len(layers)))
        moments = {layer: Moments() for layer in group}

        def view(layer: int, residual: Tensor, x: Tensor, *_: Tensor, seen: dict[int, Moments] = moments) -> None:
            if layer in seen:
                seen[layer].add(x)

        read(engine, calibration.fit, view, progress, "inputs")
        for layer in group:
            first, second = parts(layers[layer].ffn.gate, moments.pop(layer), max(ranks))
            yield [*plain, *guesses(first, second, ranks, weights)]
            if progress is not None:
                progress("factors", layer + 1, len(layers))


def fit_lines(engine: Engine, layers: Sequence[Layer], windows: Tensor, progress: Progress | None) -> None:
    """Set base and unit of every guess."""
    lines = [[Line() for _ in own.choices] for own in layers]

    def view(layer: int, residual: Tensor, x: Tensor, *_: Tensor) -> None:
        own = layers[layer]
        rows = _thinned(own)
        gate = pre_activation(own.ffn, x[rows])
        for guess, line in zip(own.choices, lines[layer], strict=True):
            line.add(guess.selector.scores(residual[rows], x[rows]), gate)

    read(engine, windows, view, progress, "deviations")
    threshold = engine.config.activation.threshold
    for own, its in zip(layers, lines, strict=True):
        for guess, line in zip(own.choices, its, strict=True):
            guess.base, guess.unit = line.base_and_unit(threshold)


def fit_curves(engine: Engine, layers: Sequence[Layer], windows: Tensor, progress: Progress | None) -> None:
    """Fill the curve of every guess."""

    def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> None:
        own = layers[layer]
        rows = _thinned(own)
        active, mass = h[rows] != 0, h[rows].abs() * own.mass_scale
        for guess in own.choices:
            guess.curve.add(guess.needed(residual[rows], x[rows]), active, mass)

    read(engine, windows, view, progress, "thresholds")


def _thinned(layer: Layer) -> slice:
    """Which tokens its guesses are scored on: where there are many, some of them, or scoring would take the time."""
    return slice(None, None, max(1, len(layer.choices) // MANY))


def _with_one_offset(guess: Guess) -> Guess:
    spread = torch.full_like(guess.unit, float(guess.unit.mean().clamp_min(1.0)))
    return Guess(guess.predictor, guess.selector, torch.zeros_like(guess.base), spread, type(guess.curve)())
