"""The model under measurement, ours or a transformers model, as the passes see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

# Called with (layer, normed input [windows, tokens, hidden], act(gate) and act(gate) * up [windows, tokens, neurons]);
# what it returns goes into down in place of the last, None changes nothing.
Look = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Facts:
    """What a report says about the model.

    Args:
        name: for a person.
        fingerprint: names its architecture.
        content: names its weights, the same in every weight format.
        activation: of its FFNs.
        gated: whether there is an up projection beside the gate.
        layers, neurons, hidden, vocab: sizes.
        context: the longest window.
        weights: their format.
        device: where it runs.
    """

    name: str
    fingerprint: str
    content: str
    activation: str
    gated: bool
    layers: int
    neurons: int
    hidden: int
    vocab: int
    context: int
    weights: str
    device: str


class Subject(Protocol):
    """A model that can be watched while it reads."""

    facts: Facts
    together: bool  # reads several windows at once

    def read(self, windows: Tensor, look: Look | None = None) -> None:
        """Read windows [windows, tokens] int64, each from its own beginning, and show every FFN to `look`."""

    def losses(self, windows: Tensor, look: Look | None = None, relu: bool = False) -> Tensor:
        """Cross entropy of every token but the first in nats, [windows, tokens - 1] float64.

        `relu` takes a FATReLU gate for a ReLU: what `look` closes then starts from 0.
        """

    def down(self, layer: int, h: Tensor) -> Tensor:
        """What activations [..., neurons] add to the residual, but for a bias and a scale: [..., hidden]."""

    def down_norms(self, layer: int) -> Tensor:
        """Length of every neuron's output vector, [neurons] float32."""
