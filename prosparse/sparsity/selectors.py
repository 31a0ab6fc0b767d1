"""A layer's predictor over that layer's weights: what `PredictedFFN` asks which neurons to compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.guess import Guess
from prosparse.kernels.predict_select import pack_signs
from prosparse.kernels.weight import Weight, in_format

from ..weights.predictor import LayerPredictor

BLOCK_ROWS = 4096  # of a gate held in float32 at a time


class Selector:
    """Scores the neurons of one layer.

    Args:
        predictor: of this layer.
        gates: the gate that it predicts, [neurons, hidden], or the parts of one that lies on several devices;
            low_bit_gate and sign_bits are made from it. The selector is where the first part is.
    """

    def __init__(self, predictor: LayerPredictor, *gates: Weight) -> None:
        self.kind = predictor.kind
        device = gates[0].codes.device
        second: Weight | Tensor
        if predictor.second is not None:
            second = _on(predictor.second, device)
        elif self.kind == "low_bit_gate":
            codes = [in_format(rows, "int4").codes.to(device) for rows in _blocks(gates)]
            second = Weight(torch.cat(codes), gates[0].shape[1])
        else:
            second = torch.cat([pack_signs(rows).to(device) for rows in _blocks(gates)])
        first = None if predictor.first is None else _on(predictor.first, device)
        self.guess = Guess(predictor.offset.to(device), second, first, predictor.relu, predictor.un_normed)

    @property
    def nbytes(self) -> int:
        """Bytes that a step reads of the predictor."""
        return self.guess.nbytes

    def select(self, residual: Tensor, x: Tensor) -> ActiveNeurons:
        """What is predicted for a step of 1 to 16 tokens: residual and normed input, [tokens, hidden] float32."""
        return self.guess.select(residual, x)

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        """[tokens, neurons] float32 for any number of tokens; a neuron is predicted where `not score < 0`."""
        return self.guess.scores(residual, x)


class Predicts(Protocol):
    """An FFN block with a selector."""

    selector: Selector | None

    def audit(self, residual: Tensor) -> tuple[int, int]:
        """How many neurons are active for a step's tokens, and how many of them are predicted."""


def has_selector(ffn: object) -> TypeGuard[Predicts]:
    """Whether an FFN block is predicted."""
    return getattr(ffn, "selector", None) is not None


def _blocks(gates: Sequence[Weight]) -> Iterator[Tensor]:
    """The rows of all parts in float32, some at a time."""
    for gate in gates:
        for start in range(0, gate.shape[0], BLOCK_ROWS):
            yield Weight(gate.codes[start : start + BLOCK_ROWS], gate.packed_columns).values()


def _on(weight: Weight, device: torch.device) -> Weight:
    return Weight(weight.codes.to(device), weight.packed_columns)
