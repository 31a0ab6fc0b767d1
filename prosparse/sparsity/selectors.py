"""A layer's predictor over that layer's weights: what `PredictedFFN` asks which neurons to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.linear import linear_reference
from prosparse.kernels.predict_select import (
    pack_signs,
    predict_score,
    predict_select,
    sign_score,
    sign_select,
)
from prosparse.kernels.weight import Weight, in_format

from ..weights.predictor import LayerPredictor

BLOCK_ROWS = 4096  # of a packed gate unpacked at a time


class Selector:
    """Scores the neurons of one layer.

    Args:
        predictor: of this layer.
        gate: the gate that it predicts, [neurons, hidden]; low_bit_gate and sign_bits are made from it.

    Attributes:
        second: what is scanned for low_rank and low_bit_gate, [neurons, rank or hidden]; None for sign_bits.
        signs: what is scanned for sign_bits, [neurons, words] int64; None for the others.
    """

    def __init__(self, predictor: LayerPredictor, gate: Weight) -> None:
        device = gate.codes.device
        self.kind, self.relu, self.un_normed = predictor.kind, predictor.relu, predictor.un_normed
        self.offset = predictor.offset.to(device)
        self.first = None if predictor.first is None else _on(predictor.first, device)
        self.second: Weight | None = None
        self.signs: Tensor | None = None
        if predictor.second is not None:
            self.second = _on(predictor.second, device)
        elif self.kind == "low_bit_gate":
            self.second = _low_bit(gate)
        else:
            self.signs = torch.cat([pack_signs(gate.rows_of(ids)) for ids in _blocks(gate)])

    @property
    def nbytes(self) -> int:
        """Bytes that a step reads of the predictor."""
        own = self.offset.nbytes + sum(part.nbytes for part in (self.first, self.second) if part is not None)
        return own + (0 if self.signs is None else self.signs.nbytes)

    def select(self, residual: Tensor, x: Tensor) -> ActiveNeurons:
        """What is predicted for a step of 1 to 16 tokens: residual and normed input, [tokens, hidden] float32."""
        if self.signs is not None:
            return sign_select(x, self.signs, self.offset)
        assert self.second is not None
        return predict_select(self._input(residual, x, torch.ops.prosparse.linear), self.second, self.offset)

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        """[tokens, neurons] float32 for any number of tokens; a neuron is predicted where `not score < 0`."""
        if self.signs is not None:
            return sign_score(x, self.signs, self.offset)
        assert self.second is not None
        return predict_score(self._input(residual, x, linear_reference), self.second.codes, self.offset)

    def _input(self, residual: Tensor, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if self.first is None:
            return x
        z = multiply((residual if self.un_normed else x).contiguous(), self.first.codes)
        return torch.relu(z) if self.relu else z


def _low_bit(gate: Weight) -> Weight:
    return Weight(torch.cat([in_format(gate.rows_of(ids), "int4").codes for ids in _blocks(gate)]), gate.shape[1])


def _blocks(gate: Weight) -> tuple[Tensor, ...]:
    return torch.arange(gate.shape[0], device=gate.codes.device).split(BLOCK_ROWS)


def _on(weight: Weight, device: torch.device) -> Weight:
    return Weight(weight.codes.to(device), weight.packed_columns)
