"""A rank-32 guess at which neurons are active, made without training and judged on the held-out text.

Its factors are those of `prosparse predictor build` (`prosparse.study.predictors.low_rank`), in float32, from every
other of `WINDOWS` windows spread over the calibration text; a model in training has no folder that could be loaded. A
neuron is predicted where its guess exceeds the threshold of the activation less `margin` times the deviation of the
guess's error. One margin per layer is set on the remaining calibration windows, such that the recall there is `TARGET`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from prosparse.kernels.weight import Weight
from prosparse.study.predictors.low_rank import Moments, parts

WINDOWS = 40
RANK = 32
TARGET = 0.99


@dataclass
class Guess:
    """A layer's predictor: left [neurons, rank] @ right [rank, hidden] @ x + offset > 0."""

    left: Tensor
    right: Tensor
    offset: Tensor

    def score(self, x: Tensor) -> Tensor:
        return (x @ self.right.T) @ self.left.T + self.offset


@contextmanager
def observed(model: torch.nn.Module) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """Collects for each layer what goes into its gate and which neurons were active: [tokens, ...] per pass."""
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.model.layers]
    inputs: dict[int, Tensor] = {}

    def keep_input(layer: int) -> Any:
        return lambda module, arguments: inputs.__setitem__(layer, arguments[0].flatten(0, -2))

    def keep_active(layer: int) -> Any:
        return lambda module, arguments: seen[layer].append((inputs[layer], (arguments[0] != 0).flatten(0, -2)))

    handles = []
    for i, layer in enumerate(model.model.layers):
        handles.append(layer.mlp.gate_proj.register_forward_pre_hook(keep_input(i)))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep_active(i)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def fit(weight: Tensor, x: Tensor, threshold: float) -> tuple[Guess, Tensor]:
    """The predictor of a gate [neurons, hidden] from inputs [tokens, hidden], and the deviation of its error."""
    mean, moments = x.mean(0), Moments()
    moments.add(x)
    right, left = parts(Weight(weight), moments, RANK)
    guess = Guess(left, right, weight @ mean - left @ (right @ mean) - threshold)
    error = guess.score(x) - (x @ weight.T - threshold)
    return guess, error.pow(2).mean(0).sqrt()


def calibrate(guess: Guess, deviation: Tensor, x: Tensor, active: Tensor) -> Guess:
    """The same predictor, shifted by so many deviations of each neuron that it finds `TARGET` of what is active."""
    needed = (-guess.score(x) / deviation.clamp_min(1e-9))[active]  # margins that just find each active neuron
    margin = needed.kthvalue(max(1, round(TARGET * len(needed)))).values
    return Guess(guess.left, guess.right, guess.offset + margin * deviation + 1e-6)


@torch.inference_mode()
def make_predictors(
    model: torch.nn.Module, tokenizer: Tokenizer, text: str, length: int, threshold: float
) -> list[Guess]:
    """One predictor for each layer, from a calibration text of at least two windows of `length` tokens."""
    ids = torch.tensor(tokenizer.encode(text).ids)
    available = len(ids) // length
    count = min(WINDOWS, available)
    windows = ids[torch.arange(count)[:, None] * (available // count) * length + torch.arange(length)]
    both = []
    for part in (windows[::2], windows[1::2]):
        with observed(model) as seen:
            for batch in part.split(4):
                model(batch, use_cache=False)
        both.append([[torch.cat(parts) for parts in zip(*layer, strict=True)] for layer in seen])
    guesses = []
    for layer, (x, _), (other_x, active) in zip(model.model.layers, *both, strict=True):
        guess, deviation = fit(layer.mlp.gate_proj.weight, x, threshold)
        guesses.append(calibrate(guess, deviation, other_x, active))
    return guesses


class Judge:
    """Counts what the predictors find while a model runs."""

    def __init__(self, guesses: list[Guess]) -> None:
        self.guesses = guesses
        self.found, self.active, self.predicted, self.seen = (torch.zeros(len(guesses)) for _ in range(4))

    def add(self, seen: list[list[tuple[Tensor, Tensor]]]) -> None:
        for i, (guess, passes) in enumerate(zip(self.guesses, seen, strict=True)):
            for x, active in passes:
                predicted = guess.score(x) > 0
                self.found[i] += (predicted & active).sum()
                self.active[i] += active.sum()
                self.predicted[i] += predicted.sum()
                self.seen[i] += active.numel()
            passes.clear()

    def says(self) -> dict[str, Any]:
        def rounded(values: Tensor) -> list[float]:
            return [round(value, 4) for value in values.tolist()]

        return {
            "rank": RANK,
            "calibrated_to_recall": TARGET,
            "recall": rounded(self.found / self.active),
            "mean_recall": round(float((self.found / self.active).mean()), 4),
            "predicted_sparsity": rounded(1 - self.predicted / self.seen),
            "mean_predicted_sparsity": round(float((1 - self.predicted / self.seen).mean()), 4),
        }
