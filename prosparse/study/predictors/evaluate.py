"""`evaluate`: predictors, or everything that needs no training, on the held-out text, as one JSON document.

    bytes per token = attention, lm_head, and of the FFNs what the selector and its neurons take

The chosen point is the one that reads the fewest bytes of those that keep to the target divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine import Engine
from ...errors import UserError
from ...weights.predictor import Predictor
from ..measure.engine_subject import EngineSubject
from ..windows import HELD_OUT, cut, read_text
from .build import prepare
from .calibration import TOKENS, WINDOW, Calibration, Progress, read
from .judge import judge
from .quality import Quality
from .yardsticks import Yardstick, at_random, hottest, oracle, previous

SCHEMA_VERSION = 1
TARGET_KL = 5e-3  # nats per token: the class of careful quantisation formats
PREDICTIONS = 10_000
CURVE = {
    "low_rank": (0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    "low_bit_gate": (0.99, 0.999, 0.9999),
    "sign_bits": (0.95, 0.99, 0.999),
    "hot": (0.9, 0.99, 0.999),
}  # recalls on calibration windows
RANDOM = (0.5, 0.9)  # shares named
Time = Callable[[Mapping[str, Predictor | str]], dict[str, float]]


@dataclass(frozen=True)
class Entrant:
    """What is judged: a point of a family's curve.

    Args:
        family: kind of predictor, name of the yardstick, or of the predictor's file.
        target: recall on calibration windows, or share named; None where there is no such knob.
        selector: itself.
    """

    family: str
    target: float | None
    selector: Predictor | Yardstick

    @property
    def name(self) -> str:
        return self.family if self.target is None else f"{self.family} {self.target:g}"


def without_training(
    engine: Engine, text: str | Path | None = None, tokens: int = TOKENS, progress: Progress | None = None
) -> list[Entrant]:
    """Every kind of predictor that is made without training, and the yardsticks, at several settings.

    Args:
        engine: the model.
        text, tokens: to calibrate on, see `build`.
        progress: called with (what, done, total).
    """
    found = []
    for kind in ("low_rank", "low_bit_gate", "sign_bits"):
        prepared = prepare(engine, kind, text=text, tokens=tokens, progress=progress)
        found += [Entrant(kind, recall, prepared.at_recall(recall)) for recall in CURVE[kind]]
    counts = count_active(engine, Calibration.of(engine, text, tokens).fit, progress)
    found += [Entrant("hot", recall, hottest(counts, recall)) for recall in CURVE["hot"]]
    found += [Entrant("random", share, at_random(share)) for share in RANDOM]
    return [*found, Entrant("previous", None, previous), Entrant("oracle", None, oracle)]


def count_active(engine: Engine, windows: Tensor, progress: Progress | None = None) -> list[Tensor]:
    """In how many tokens each neuron is active, [neurons] int64 per layer."""
    counts = [torch.zeros(engine.config.neurons, dtype=torch.int64) for _ in range(engine.config.layers)]

    def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> None:
        counts[layer] += (h != 0).sum(0).cpu()

    read(engine, windows, view, progress, "hot neurons")
    return counts


def evaluate(
    engine: Engine,
    entrants: Sequence[Entrant],
    *,
    text: str | Path | None = None,
    predictions: int = PREDICTIONS,
    target_kl: float = TARGET_KL,
    time: Time | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge entrants on a text.

    Args:
        engine: the model, in the weight format that it will run in.
        entrants: of one model; predictors are checked to be of this one.
        text: a UTF-8 file; None is the packaged held-out excerpt.
        predictions: about how many, spread evenly.
        target_kl: that the chosen point keeps to.
        time: measures tokens/s of predictors and of the modes "exact" and "dense" by name; None measures nothing.
        progress: called with (what, done, total).

    Returns:
        the document: plain data, see `docs/predictors.md`.

    Raises:
        UserError: no entrants, a predictor of another model, a text that cannot be used.
    """
    if not entrants:
        raise UserError("predictor: there is nothing to judge; pass a predictor, or none for all that need no training")
    facts = EngineSubject(engine).facts
    for own in entrants:
        if isinstance(own.selector, Predictor):
            own.selector.check_fits(facts.fingerprint, facts.content, facts.layers, facts.neurons, facts.hidden)
    windows = cut(read_text(text), engine.tokenizer, min(WINDOW, engine.context), predictions)

    def seen(done: int, total: int) -> None:
        if progress is not None:
            progress("judging", done, total)

    found = judge(engine, {own.name: own.selector for own in entrants}, windows, seen)
    speeds = {}
    if time is not None:
        timed = {own.name: own.selector for own in entrants if isinstance(own.selector, Predictor)}
        speeds = time({"dense": "dense", "exact": "exact", **timed})
    rest = _bytes_beside_ffn(engine)
    points = [_point(own, quality, rest, speeds.get(own.name)) for own, quality in zip(entrants, found, strict=True)]
    first = found[0]
    modes = {
        mode: {"bytes_per_token": round(rest + nbytes), "tokens_per_s": speeds.get(mode)}
        for mode, nbytes in (("exact", first.exact_ffn_bytes), ("dense", first.dense_ffn_bytes))
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "model": facts.name,
        "weights": facts.weights,
        "text": HELD_OUT.name if text is None else Path(text).name,
        "window": windows.targets.shape[1],
        "predictions": first.predictions,
        "perplexity": first.exact_perplexity,
        "modes": modes,
        "target_kl": target_kl,
        "chosen": choose(points, target_kl),
        "points": points,
    }


def choose(points: Sequence[Mapping[str, Any]], target_kl: float) -> str | None:
    """Name of the point to use: of the predictors that keep to the target, the one that reads the fewest bytes."""
    able = [point for point in points if point["is_predictor"] and point["kl_divergence"]["value"] <= target_kl]
    return min(able, key=lambda point: point["bytes_per_token"])["name"] if able else None


def _point(own: Entrant, quality: Quality, rest: int, speed: float | None) -> dict[str, Any]:
    plain = quality.to_dict() | {"tokens_per_s": speed}
    head = {"name": own.name, "family": own.family, "target": own.target}
    is_predictor = isinstance(own.selector, Predictor)
    return head | {"is_predictor": is_predictor, "bytes_per_token": round(rest + quality.ffn_bytes)} | plain


def _bytes_beside_ffn(engine: Engine) -> int:
    decoder = engine.decoder
    return decoder.lm_head.nbytes + sum(own.qkv.nbytes + own.o.nbytes for own, _ in decoder.blocks)
