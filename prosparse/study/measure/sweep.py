"""What closing neurons costs: perplexity and activation sparsity with everything below a threshold closed.

On a ReLU model this is FATReLU (Song et al., "ProSparse", 2024, eq. 3), on others FAT-eps: |act(gate)| < eps is closed
(Luo et al., "Sparsing Law", 2024, 4.1). Each threshold takes a pass over a sample of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .subject import Subject

Rule = Callable[[int, Tensor, Tensor], Tensor]
Progress = Callable[[str, int, int], None]


class Closing:
    """Closes neurons by a rule, and counts what stays open.

    Args:
        rule: called with (layer, act(gate), act(gate) * up); returns which neurons to close.
        layers: of the model.
    """

    def __init__(self, rule: Rule, layers: int) -> None:
        self.rule = rule
        self.open, self.seen = [0] * layers, [0] * layers

    def look(self, layer: int, x: Tensor, value: Tensor, h: Tensor) -> Tensor:
        kept = h.masked_fill(self.rule(layer, value, h), 0)
        self.open[layer] += int(torch.count_nonzero(kept))
        self.seen[layer] += kept.numel()
        return kept

    def sparsity(self) -> list[float]:
        """Activation sparsity of each layer."""
        return [1 - n / all_ for n, all_ in zip(self.open, self.seen, strict=True)]


def mean_loss(subject: Subject, windows: Sequence[Tensor], closing: Closing | None, relu: bool = False) -> float:
    """Nats per token over windows, [tokens] each."""
    look = None if closing is None else closing.look
    found = [subject.losses(window[None], look, relu).flatten() for window in windows]
    return float(torch.cat(found).mean())


def outcome(loss: float, before: float, closing: Closing) -> dict[str, Any]:
    """What a closing did, beside the model as it is."""
    layers = [round(share, 6) for share in closing.sparsity()]
    return {
        "activation_sparsity": round(sum(layers) / len(layers), 6),
        "activation_sparsity_layers": layers,
        "loss": round(loss, 6),
        "perplexity": round(math.exp(loss), 6),
        "perplexity_ratio": round(math.exp(loss - before), 6),
    }


def sample_facts(windows: Sequence[Tensor], loss: float) -> dict[str, Any]:
    """What was read, and how well the model predicts it as it is."""
    return {
        "windows": len(windows),
        "tokens": sum(len(window) for window in windows),
        "loss": round(loss, 6),
        "perplexity": round(math.exp(loss), 6),
    }


def sweep_thresholds(
    subject: Subject, windows: Sequence[Tensor], thresholds: Sequence[float], progress: Progress | None = None
) -> dict[str, Any]:
    """Close everything below each threshold in turn.

    Args:
        subject: the model.
        windows: the sample, [tokens] each.
        thresholds: in units of act(gate). A FATReLU model starts from ReLU, so 0 opens what its own threshold closes.
        progress: called with (what, done, total) passes.

    Returns:
        `sample` as the model is, and one of `rows` per threshold.
    """
    before = mean_loss(subject, windows, None)
    rows = []
    for done, threshold in enumerate(thresholds, 1):
        closing = Closing(_below(threshold), subject.facts.layers)
        loss = mean_loss(subject, windows, closing, relu=True)
        rows.append({"threshold": threshold, **outcome(loss, before, closing)})
        if progress is not None:
            progress("closing below a threshold", done, len(thresholds))
    return {"sample": sample_facts(windows, before), "rows": rows}


def _below(threshold: float) -> Rule:
    return lambda layer, value, h: value.abs() < threshold
