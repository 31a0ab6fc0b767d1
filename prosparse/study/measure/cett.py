"""CETT, the cumulative error of tail truncation, and the sparsity it allows (Luo et al., "Sparsing Law", 2024, eq. 3).

    n_i = h_i * down_i                               what neuron i adds to the output
    D = {i: |n_i| < eps}                             the tail
    CETT(eps) = |sum of n_i in D| / |sum of all|     mean over tokens; grows with eps

A layer has one eps, found by bisection on a dense run, so models whose activation makes no zeros get a number too.
CETT-PPL-p% is the sparsity at the CETT at which closing the tail of all layers raises perplexity by p %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .subject import Subject
from .sweep import Closing, Progress, mean_loss, outcome, sample_facts

PASSES = 20  # most passes for one target
CLOSE = 0.01  # a CETT within this share of its target is found
NARROW = 1e-4  # an interval of eps this narrow cannot be told apart in the precision of the model
PPL_STEPS = 12  # halvings of CETT from [0, 1]
PPL_CLOSE = 2e-4  # of the perplexity ratio


class Tails:
    """CETT of each layer as a function of its eps, known at the points tried so far.

    Args:
        subject: the model.
        windows: the sample, [tokens] each.
        progress: called with (what, passes done, 0).
    """

    def __init__(self, subject: Subject, windows: Sequence[Tensor], progress: Progress | None = None) -> None:
        self.subject, self.windows, self.progress = subject, windows, progress
        layers = range(subject.facts.layers)
        self.norms = [subject.down_norms(layer) for layer in layers]
        self._passes = 0
        largest = self._largest()
        self.known: list[list[tuple[float, float]]] = [[(0.0, 0.0), (largest[layer], 1.0)] for layer in layers]

    def thresholds(self, target: float) -> tuple[list[float], list[float]]:
        """eps of each layer with about this CETT, and the CETT it has."""
        if target == 0:
            return [0.0] * len(self.known), [0.0] * len(self.known)
        for _ in range(PASSES):
            tries = [_between(points, target) for points in self.known]
            if all(point is None for point in tries):
                break
            eps = [points[-1][0] if new is None else new for new, points in zip(tries, self.known, strict=True)]
            for points, new, found in zip(self.known, tries, self._cett(eps), strict=True):
                if new is not None:
                    points.append((new, found))
                    points.sort()
        best = [min(points, key=lambda point: abs(point[1] - target)) for points in self.known]
        return [eps for eps, _ in best], [found for _, found in best]

    def closing(self, eps: Sequence[float]) -> Closing:
        """Closes the tails."""
        return Closing(lambda layer, value, h: self._lengths(layer, h) < eps[layer], len(self.known))

    def _lengths(self, layer: int, h: Tensor) -> Tensor:
        return h.float().abs() * self.norms[layer]

    def _largest(self) -> list[float]:
        largest = [0.0] * self.subject.facts.layers

        def look(layer: int, x: Tensor, value: Tensor, h: Tensor) -> None:
            largest[layer] = max(largest[layer], float(self._lengths(layer, h).max()))

        self._read(look)
        return [2 * length or 1.0 for length in largest]

    def _cett(self, eps: Sequence[float]) -> list[float]:
        errors, tokens = [0.0] * len(eps), [0] * len(eps)

        def look(layer: int, x: Tensor, value: Tensor, h: Tensor) -> None:
            tail = h.masked_fill(self._lengths(layer, h) >= eps[layer], 0)
            whole = self.subject.down(layer, h).double().norm(dim=-1)
            error = self.subject.down(layer, tail).double().norm(dim=-1)
            some = whole > 0
            errors[layer] += float((error[some] / whole[some]).sum())
            tokens[layer] += int(some.sum())

        self._read(look)
        return [error / max(1, n) for error, n in zip(errors, tokens, strict=True)]

    def _read(self, look: Any) -> None:
        for window in self.windows:
            self.subject.read(window[None], look)
        self._passes += 1
        if self.progress is not None:
            self.progress("searching the tails", self._passes, 0)


def measure_cett(
    subject: Subject,
    windows: Sequence[Tensor],
    targets: Sequence[float],
    percents: Sequence[float],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Sparsity and perplexity at chosen CETTs, and at the CETTs where perplexity has risen by chosen percents.

    Returns:
        `sample` as the model is, one of `targets` per CETT, one of `ppl` per percent.
    """
    with torch.inference_mode():
        before = mean_loss(subject, windows, None)
        tails = Tails(subject, windows, progress)
        rows = [_at(tails, target, before) for target in targets]
        ppl = [{"percent": percent, **_at_ppl(tails, 1 + percent / 100, before)} for percent in percents]
    return {"sample": sample_facts(windows, before), "targets": rows, "ppl": ppl}


def _at(tails: Tails, target: float, before: float) -> dict[str, Any]:
    eps, found = tails.thresholds(target)
    closing = tails.closing(eps)
    loss = mean_loss(tails.subject, tails.windows, closing)
    layers = {"thresholds": [float(f"{value:.6g}") for value in eps], "cett_layers": [round(c, 6) for c in found]}
    return {"cett": round(target, 6), **outcome(loss, before, closing), **layers}


def _at_ppl(tails: Tails, ratio: float, before: float) -> dict[str, Any]:
    """The largest CETT found at which the perplexity ratio is at most this."""
    low, high = 0.0, 1.0
    best = _at(tails, 0.0, before)
    for _ in range(PPL_STEPS):
        found = _at(tails, (low + high) / 2, before)
        if found["perplexity_ratio"] <= ratio + PPL_CLOSE:
            low, best = found["cett"], found
        else:
            high = found["cett"]
        if abs(found["perplexity_ratio"] - ratio) <= PPL_CLOSE:
            break
    return best


def _between(points: list[tuple[float, float]], target: float) -> float | None:
    """The next eps to try between the tried ones around a target, or None where one is close enough."""
    if any(abs(found - target) <= CLOSE * target for _, found in points):
        return None
    low = max(eps for eps, found in points if found < target)
    high = min(eps for eps, found in points if found > target)
    if high - low <= NARROW * high:
        return None
    return math.sqrt(low * high) if low > 0 else high / 8
