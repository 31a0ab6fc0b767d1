"""What guesses a layer's active neurons before its gate is read, as the kernels take it.

z = x or the residual       z = first . z       z = relu(z)        each where the guess has it
score = second . z + offset, or by signs: see `predict_select`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .active import ActiveNeurons
from .linear import linear, linear_reference
from .predict_select import predict_score, predict_select, sign_score, sign_select, words
from .weight import Weight

SOME, SIGNS, FIRST, RELU, UN_NORMED = 1, 2, 4, 8, 16  # bits of `code`


@dataclass(frozen=True, eq=False)
class Guess:
    """A guess.

    Args:
        offset: [neurons] float32.
        second: [neurons, columns], or the packed signs of the gate, [neurons, words] int64.
        first: [columns, hidden], or None.
        relu: after first.
        un_normed: takes the residual in place of the normed input.
    """

    offset: Tensor
    second: Weight | Tensor
    first: Weight | None = None
    relu: bool = False
    un_normed: bool = False

    @property
    def code(self) -> int:
        """What it is, as compiled kernels know it; 0 would be no guess."""
        signs = isinstance(self.second, Tensor)
        return SOME | SIGNS * signs | FIRST * (self.first is not None) | RELU * self.relu | UN_NORMED * self.un_normed

    @property
    def tensors(self) -> list[Tensor]:
        """Offset, second and, where there is one, first."""
        second = self.second if isinstance(self.second, Tensor) else self.second.codes
        return [self.offset, second] + ([] if self.first is None else [self.first.codes])

    @property
    def nbytes(self) -> int:
        """Bytes that a step reads of it."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to(self, device: torch.device) -> Guess:
        """The same on another device."""
        columns = (self.first or self.second).shape[1]
        return guess_from(self.code, [tensor.to(device) for tensor in self.tensors], columns)

    def select(self, residual: Tensor, x: Tensor) -> ActiveNeurons:
        """What it names for a step of 1 to 16 tokens: residual and normed input, [tokens, hidden] float32."""
        if isinstance(self.second, Tensor):
            return sign_select(x, self.second, self.offset)
        return predict_select(self._input(residual, x, linear), self.second, self.offset)

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        """[tokens, neurons] float32 for any number of tokens; a neuron is named where `not score < 0`."""
        if isinstance(self.second, Tensor):
            return sign_score(x, self.second, self.offset)
        z = self._input(residual, x, lambda z, first: linear_reference(z, first.codes))
        return predict_score(z, self.second.codes, self.offset)

    def check_fits(self, op: str, neurons: int, hidden: int) -> None:
        """Raise ValueError unless it is of a layer of these sizes."""
        columns = hidden if self.first is None else self.first.shape[0]
        expected = (neurons, words(hidden) if isinstance(self.second, Tensor) else columns)
        first = (columns, hidden) if self.first is None else self.first.shape
        if self.second.shape != expected or self.offset.shape != (neurons,) or first != (columns, hidden):
            raise ValueError(
                f"{op}: guess has second {tuple(self.second.shape)}, offset {tuple(self.offset.shape)} and first "
                f"{first}, but the layer has {neurons} neurons and hidden {hidden}; make it for this layer"
            )

    def _input(self, residual: Tensor, x: Tensor, multiply: Callable[[Tensor, Weight], Tensor]) -> Tensor:
        if self.first is None:
            return x
        z = multiply((residual if self.un_normed else x).contiguous(), self.first)
        return torch.relu(z) if self.relu else z


def guess_from(code: int, tensors: list[Tensor], hidden: int) -> Guess:
    """The guess that has this code and these tensors, for a layer of this hidden size."""
    first = _matrix(tensors[2], hidden) if code & FIRST else None
    columns = hidden if first is None else first.shape[0]
    second = tensors[1] if code & SIGNS else _matrix(tensors[1], columns)
    return Guess(tensors[0], second, first, bool(code & RELU), bool(code & UN_NORMED))


def _matrix(codes: Tensor, columns: int) -> Weight:
    return Weight(codes, columns if codes.dtype in (torch.int8, torch.uint8) else None)
