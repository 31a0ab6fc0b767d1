"""A layer's predictor over that layer's weights: what `PredictedFFN` asks which neurons to compute."""

from __future__ import annotations

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
        gate: the gate that it predicts, [neurons, hidden]; low_bit_gate and sign_bits are made from it.
    """

    def __init__(self, predictor: LayerPredictor, gate: Weight) -> None:
        self.kind = predictor.kind
        device = gate.codes.device
        blocks = torch.arange(gate.shape[0], device=device).split(BLOCK_ROWS)
        second: Weight | Tensor
        if predictor.second is not None:
            second = _on(predictor.second, device)
        elif self.kind == "low_bit_gate":
            second = Weight(torch.cat([in_format(gate.rows_of(ids), "int4").codes for ids in blocks]), gate.shape[1])
        else:
            second = torch.cat([pack_signs(gate.rows_of(ids)) for ids in blocks])
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


def _on(weight: Weight, device: torch.device) -> Weight:
    return Weight(weight.codes.to(device), weight.packed_columns)
