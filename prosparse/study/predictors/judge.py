"""How good a selector is: what it finds, and what leaving the rest out does to the model's predictions.

The model reads the held-out windows twice, with all neurons (which is exact, and dense) and with those alone that the
selector names; what it names in one layer is judged on what the layers before have left it. The true decode path does
the same token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine import Engine
from ...sparsity.selectors import Selector
from ...weights.predictor import Predictor
from ..compare import bootstrap, kl_divergence, losses
from ..perplexity import exponential
from ..watch import open_ffns, rows_bytes
from ..windows import Windows
from .quality import LayerQuality, Quality
from .target import window_logits
from .yardsticks import Yardstick


class Judged:
    """A selector in every layer, and counts of what it did: use `hide` in `window_logits`, then `layers`.

    Args:
        engine: the model.
        predictor: of it, or a yardstick.
        name: of the yardstick.
    """

    def __init__(self, engine: Engine, predictor: Predictor | Yardstick, name: str) -> None:
        self._ffns, self._name = open_ffns(engine), name
        self._yardstick = None if isinstance(predictor, Predictor) else predictor
        self._selectors: list[Selector | None] = [None] * len(self._ffns)
        self._own: Sequence[Any] = [None] * len(self._ffns)
        if isinstance(predictor, Predictor):
            self._own = predictor.layers
            pairs = zip(predictor.layers, self._ffns, strict=True)
            self._selectors = [None if own is None else Selector(own, ffn.gate) for own, ffn in pairs]
        self._scale = [ffn.down.values().norm(dim=1) for ffn in self._ffns]
        # active, named, both, all; and the mass of the named and of all
        self._counts = torch.zeros(len(self._ffns), 4, dtype=torch.int64)
        self._mass = torch.zeros(len(self._ffns), 2, dtype=torch.float64)
        self.not_numbers = 0

    def hide(self, layer: int, residual: Tensor, x: Tensor, h: Tensor) -> Tensor:
        active, selector = h != 0, self._selectors[layer]
        if self._yardstick is not None:
            named = self._yardstick(layer, active)
        elif selector is not None:
            scores = selector.scores(residual, x)
            self.not_numbers += int(scores.isnan().sum())
            named = ~(scores < 0)
        else:
            named = torch.ones_like(active)
        both, mass = active & named, (h.abs() * self._scale[layer]).double()
        self._counts[layer] += torch.tensor([int(t.sum()) for t in (active, named, both)] + [h.numel()])
        self._mass[layer] += torch.stack([(mass * named).sum(), mass.sum()]).cpu()
        return torch.where(named, h, 0.0)

    def layers(self) -> tuple[LayerQuality, ...]:
        return tuple(self._layer(number) for number in range(len(self._ffns)))

    def ffn_bytes(self) -> tuple[float, float, float]:
        """Of a token: with the selector, in mode exact, in mode dense."""
        ours = exact = dense = 0.0
        for number, ffn in enumerate(self._ffns):
            active, named, both, everything = self._counts[number].tolist()
            rows = rows_bytes(ffn)
            exact += ffn.gate.nbytes + active / everything * rows
            dense += ffn.gate.nbytes + rows
            predicts = self._yardstick is not None or self._selectors[number] is not None
            gate = (named / everything if predicts else 1.0) * ffn.gate.nbytes
            ours += self._bytes(number) + gate + both / everything * rows
        return ours, exact, dense

    def _bytes(self, number: int) -> int:
        selector = self._selectors[number]
        return 0 if selector is None else selector.nbytes

    def _layer(self, number: int) -> LayerQuality:
        active, named, both, everything = self._counts[number].tolist()
        found, mass = self._mass[number].tolist()
        own = self._own[number]
        predicts = self._yardstick is not None or own is not None
        return LayerQuality(
            kind=self._name if self._yardstick is not None else "exact" if own is None else own.kind,
            rank=0 if own is None else own.rank,
            recall=both / active if active else None,
            precision=both / named if named and predicts else None,
            predicted_sparsity=1 - named / everything,
            activation_sparsity=1 - active / everything,
            missed_mass=1 - found / mass if mass else 0.0,
            predictor_bytes=self._bytes(number),
        )


@torch.inference_mode()
def judge(
    engine: Engine,
    selectors: Mapping[str, Predictor | Yardstick],
    windows: Windows,
    progress: Callable[[int, int], None] | None = None,
) -> list[Quality]:
    """Judge predictors and yardsticks on windows of a text, all on the same ones.

    Args:
        engine: the model, in any mode.
        selectors: by name: predictors that fit it, and yardsticks.
        windows: from `cut`.
        progress: called with (done, total) predictions of all selectors together.
    """
    judged = {name: Judged(engine, selector, name) for name, selector in selectors.items()}
    exact = window_logits(engine, windows.inputs)
    ours = {name: window_logits(engine, windows.inputs, own.hide) for name, own in judged.items()}
    rows: dict[str, list[Tensor]] = {name: [] for name in judged}
    total, done = windows.targets.numel() * len(judged), 0
    for p, targets in zip(exact, windows.targets, strict=True):
        baseline, best = losses(p, targets), p.argmax(1)
        for name in judged:
            q = next(ours[name])
            agrees = (best == q.argmax(1)).double()
            rows[name].append(torch.stack([baseline, losses(q, targets), kl_divergence(p, q), agrees]))
            done += len(targets)
            if progress is not None:
                progress(done, total)
    return [_quality(name, own, torch.stack(rows[name], 1)) for name, own in judged.items()]


def _quality(name: str, judged: Judged, found: Tensor) -> Quality:
    """From losses of exact and of the selector, divergences and agreement, [4, windows, length]."""
    baseline, loss, kl, agrees = found
    layers, (ours, exact, dense) = judged.layers(), judged.ffn_bytes()
    used = [layer for layer in layers if layer.kind != "exact"]
    return Quality(
        name=name,
        predictions=loss.numel(),
        recall=_mean([layer.recall for layer in used]),
        precision=_mean([layer.precision for layer in used]),
        predicted_sparsity=_mean([layer.predicted_sparsity for layer in used]),
        activation_sparsity=_mean([layer.activation_sparsity for layer in used]),
        missed_mass=_mean([layer.missed_mass for layer in used]),
        perplexity=_exp(float(loss.mean())),
        exact_perplexity=_exp(float(baseline.mean())),
        kl_divergence=bootstrap(kl),
        top1_agreement=bootstrap(agrees),
        perplexity_ratio=exponential(bootstrap(loss - baseline)),
        ffn_bytes=ours,
        exact_ffn_bytes=exact,
        dense_ffn_bytes=dense,
        layers=layers,
        remarks=_remarks(layers, used, judged.not_numbers),
    )


def _remarks(layers: Sequence[LayerQuality], used: Sequence[LayerQuality], not_numbers: int) -> tuple[str, ...]:
    found = []
    if not used:
        found.append("predicts in no layer: every gate is read whole, as in mode exact")
    nothing = [str(i) for i, layer in enumerate(layers) if layer.kind != "exact" and layer.predicted_sparsity == 1]
    everything = [str(i) for i, layer in enumerate(layers) if layer.kind != "exact" and layer.predicted_sparsity == 0]
    if nothing:
        found.append(f"names no neuron in layers {', '.join(nothing)}")
    if everything:
        found.append(f"names every neuron in layers {', '.join(everything)}: slower than exact there")
    if not_numbers:
        found.append(f"{not_numbers} scores were not numbers; their neurons are predicted")
    return tuple(found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
