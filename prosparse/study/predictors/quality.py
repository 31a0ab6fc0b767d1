"""What is found out about a selector: of each layer, and of the model that it runs in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..compare import Interval


@dataclass(frozen=True)
class LayerQuality:
    """Of one layer, over all tokens. recall and precision are None where nothing is active, or nothing is named.

    Args:
        kind: what selects: the predictor's, the yardstick's, or "exact".
        rank: of low_rank, else 0.
        recall: named and active over active.
        precision: named and active over named.
        predicted_sparsity: 1 - named / neurons.
        activation_sparsity: 1 - active / neurons.
        missed_mass: share of sum |act(gate) * up| * |row of down| that is not named.
        predictor_bytes: that a token reads to select.
    """

    kind: str
    rank: int
    recall: float | None
    precision: float | None
    predicted_sparsity: float
    activation_sparsity: float
    missed_mass: float
    predictor_bytes: int


@dataclass(frozen=True)
class Quality:
    """What `judge` found; divergences in nats per token, against the same weights with all neurons.

    Args:
        name: of the selector.
        predictions: how many.
        recall, precision, predicted_sparsity, activation_sparsity, missed_mass: means over the layers that predict.
        perplexity, exact_perplexity: with what the selector names, and with all neurons.
        kl_divergence, top1_agreement, perplexity_ratio: with bootstrap intervals.
        ffn_bytes: of gate, up, down and predictor that a token reads.
        exact_ffn_bytes, dense_ffn_bytes: the same in these modes.
        layers: one for each.
        remarks: what should not be overlooked.
        tokens_per_s: measured while decoding, where asked for.
    """

    name: str
    predictions: int
    recall: float | None
    precision: float | None
    predicted_sparsity: float | None
    activation_sparsity: float | None
    missed_mass: float | None
    perplexity: float
    exact_perplexity: float
    kl_divergence: Interval
    top1_agreement: Interval
    perplexity_ratio: Interval
    ffn_bytes: float
    exact_ffn_bytes: float
    dense_ffn_bytes: float
    layers: Sequence[LayerQuality]
    remarks: Sequence[str] = ()
    tokens_per_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(dataclasses.replace(self, layers=list(self.layers), remarks=list(self.remarks)))
