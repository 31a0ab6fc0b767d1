"""The lowest recall whose divergence from exact keeps to a target.

One knob for the whole model, the recall of every layer, is bisected on a logarithmic scale of what is missed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...engine import Engine
from ...sparsity.selectors import Selector
from ...weights.predictor import Predictor
from ..compare import kl_divergence
from ..watch import open_ffns, read_window, watched
from .calibration import Progress

MISSED = (0.5, 1e-7)  # shares of the active neurons between which the knob goes
STEPS = 9  # halvings: the missed share is then known within 3 %
MOST_TOKENS = 4096  # on which the divergence is measured
Hide = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def hides(engine: Engine, predictor: Predictor) -> Hide:
    """Takes (layer, residual, normed input, act(gate) * up) and returns the last without what is not predicted."""
    ffns = open_ffns(engine)
    selectors = [
        None if own is None else Selector(own, ffn.gate) for own, ffn in zip(predictor.layers, ffns, strict=True)
    ]

    def hide(layer: int, residual: Tensor, x: Tensor, h: Tensor) -> Tensor:
        selector = selectors[layer]
        return h if selector is None else torch.where(selector.scores(residual, x) < 0, 0.0, h)

    return hide


@torch.inference_mode()
def window_logits(engine: Engine, windows: Tensor, hide: Hide | None = None) -> Iterator[Tensor]:
    """Logits of each window [tokens] in turn, [tokens, vocab] float64 on the CPU; all neurons count without `hide`."""

    def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> Tensor | None:
        return None if hide is None else hide(layer, residual, x, h)

    decoder = watched(engine.decoder, open_ffns(engine), view)
    for window in windows:
        yield torch.cat([decoder.logits(hidden).cpu().double() for hidden in read_window(engine, decoder, window)])


def divergence(engine: Engine, predictor: Predictor, windows: Tensor) -> float:
    """Mean KL of a predictor's distributions from those of exact, in nats per token."""
    exact, ours = window_logits(engine, windows), window_logits(engine, windows, hides(engine, predictor))
    parts = [kl_divergence(p, q) for p, q in zip(exact, ours, strict=True)]
    return float(torch.cat(parts).mean())


def at_divergence(
    engine: Engine, make: Callable[[float], Predictor], target: float, windows: Tensor, progress: Progress | None
) -> Predictor:
    """The predictor of the lowest recall that keeps to the target; of the highest where none does."""
    windows = windows[: max(1, MOST_TOKENS // windows.shape[1])]
    bad, good = map(math.log, MISSED)
    found: Predictor | None = None
    for step in range(STEPS):
        middle = (bad + good) / 2
        predictor = make(1 - math.exp(middle))
        kl = divergence(engine, predictor, windows)
        if kl <= target:
            good, found = middle, _noted(predictor, target, kl)
        else:
            bad = middle
        if progress is not None:
            progress("divergence", step + 1, STEPS)
    if found is None:
        found = make(1 - MISSED[1])
        found = _noted(found, target, divergence(engine, found, windows))
    return found


def _noted(predictor: Predictor, target: float, kl: float) -> Predictor:
    return dataclasses.replace(predictor, about=predictor.about | {"target_kl": target, "calibration_kl": kl})
