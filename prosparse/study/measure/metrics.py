"""From counts to what the field calls things; `docs/measure.md` has every definition with its source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .bits import Array
from .counts import RATIO_BITS, UNION_SIZES, Counts

HOT = (4, 5)  # the hot set: the fewest neurons with at least 4/5 of all activations
RANKS = 100  # points of the curves over neurons
DIGITS = 6


def layer_metrics(counts: Counts, layer: int) -> dict[str, Any]:
    """One layer's numbers; None where nothing defines one (an overlap without two tokens)."""
    tokens, neurons, windows = counts.tokens, counts.neurons, int(counts.windows[0])
    active = counts.active[layer]
    total = int(active.sum())
    ratio = total / (tokens * neurons)
    chunks = [windows * (counts.window // size) for size in UNION_SIZES]
    sequence = [_share(counts.union_sequence[layer, i], chunks[i] * neurons) for i in range(len(chunks))]
    batch = [_share(counts.union_batch[layer, i], counts.batches[i] * neurons) for i in range(len(chunks))]
    frequency = np.sort(active)[::-1] / tokens
    return {
        "activation_sparsity": _rounded(1 - ratio),
        "gate_sparsity": _rounded(1 - int(counts.gate_open_at[layer].sum()) / (tokens * neurons)),
        "near_zero_share": _rounded(int(counts.near_zero[layer]) / (tokens * neurons)),
        "hot_share": _share(len(hot_set(active)), neurons) if total else None,
        "dead": int((active == 0).sum()),
        "always_on": int((active == tokens).sum()),
        "overlap": _share(counts.overlap[layer], counts.overlap_pairs[layer] << RATIO_BITS),
        "overlap_by_frequency": _rounded(float((frequency**2).sum() / frequency.sum())) if total else None,
        "union_sequence": sequence,
        "union_sequence_exponent": union_exponent(ratio, sequence),
        "union_batch": batch,
        "union_batch_exponent": union_exponent(ratio, batch),
        "activation_sparsity_at": _rounded_list(1 - counts.nonzero_at[layer] / (windows * neurons)),
        "gate_sparsity_at": _rounded_list(1 - counts.gate_open_at[layer] / (windows * neurons)),
        "frequency_by_rank": _rounded_list(
            np.array([part.mean() for part in np.array_split(frequency, _ranks(neurons))])
        ),
        "cdf": cdf(active),
    }


def mean_metrics(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over layers of what is one number or one list per layer; layers that lack it are left out."""
    means: dict[str, Any] = {}
    for name, first in layers[0].items():
        values = [layer[name] for layer in layers]
        if isinstance(first, list):
            columns = zip(*values, strict=True)
            means[name] = [_mean(column) for column in columns]
        else:
            means[name] = _mean(values)
    return means


def hot_set(active: Array) -> Array:
    """The fewest neurons with at least 80 % of a layer's activations, hottest first; of equals the first."""
    order = np.argsort(-active, kind="stable")
    reached = np.cumsum(active[order]) * HOT[1] >= active.sum() * HOT[0]
    return order[: int(np.argmax(reached)) + 1] if active.sum() else order[:0]


def cdf(active: Array) -> list[float] | None:
    """Share of a layer's activations that the hottest 0, 1, .. 100 hundredths of its neurons make."""
    if not active.sum():
        return None
    covered = np.concatenate([[0], np.cumsum(np.sort(active)[::-1])]) / active.sum()
    at = np.linspace(0, len(active), RANKS + 1)
    return _rounded_list(np.interp(at, np.arange(len(covered)), covered))


def union_exponent(ratio: float, unions: list[float | None]) -> float | None:
    """c of U(B) = 1 - (1 - ratio)^(B^c), by least squares through U(1) = ratio.

    log(log(1 - U) / log(1 - ratio)) = c log B. 1 is what independent tokens give, 0 what equal tokens give.
    """
    points = [(math.log(b), u) for b, u in zip(UNION_SIZES, unions, strict=True) if u is not None and 0 < u < 1]
    if not 0 < ratio < 1 or not points:
        return None
    ys = [math.log(math.log1p(-u) / math.log1p(-ratio)) for _, u in points]
    return _rounded(sum(x * y for (x, _), y in zip(points, ys, strict=True)) / sum(x * x for x, _ in points))


def stability(first: Array, second: Array) -> dict[str, Any]:
    """Whether two texts agree on which neurons are hot.

    Args:
        first, second: activations of each neuron on either text, [layers, neurons].

    Returns:
        per layer and on average: `jaccard`, neurons in both hot sets / in either; `covered`, the share of the second
        text's activations that the first text's hot set makes; `correlation` of the counts (Pearson).
    """
    layers = []
    for a, b in zip(first, second, strict=True):
        hot_a, hot_b = set(hot_set(a).tolist()), set(hot_set(b).tolist())
        both = a.std() > 0 and b.std() > 0
        layers.append(
            {
                "jaccard": _share(len(hot_a & hot_b), len(hot_a | hot_b)),
                "covered": _share(b[sorted(hot_a)].sum(), b.sum()),
                "correlation": _rounded(float(np.corrcoef(a, b)[0, 1])) if both else None,
            }
        )
    return {"mean": mean_metrics(layers), "layers": layers}


def predictor_metrics(counts: Counts) -> dict[str, Any]:
    """Predictor recall (found active / active, over all tokens of a layer) and predicted sparsity."""
    every = counts.tokens * counts.neurons
    layers = [
        {
            "recall": _share(counts.found[layer], counts.active[layer].sum()),
            "predicted_sparsity": _rounded(1 - int(counts.predicted[layer]) / every),
        }
        for layer in range(counts.layers)
    ]
    return {"mean": mean_metrics(layers), "layers": layers}


def _ranks(neurons: int) -> int:
    return min(RANKS, neurons)


def _share(part: Any, whole: Any) -> float | None:
    return _rounded(int(part) / int(whole)) if whole else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(sum(known) / len(known)) if known else None


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def _rounded_list(values: Array) -> list[float]:
    return [_rounded(value) for value in values]
