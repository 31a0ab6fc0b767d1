"""The two parts of an FFN that two devices share, and what each computes in a step.

Neurons are in hot-first order. The fast device has the gate of the first ones and up and down of fewer; the other
device has the rest. So there are three kinds of neurons:

    hot       gate, up and down on the fast device
    between   gate there, up and down on the other: whoever opened them hands over their numbers and values
    cold      all on the other
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prosparse.kernels.activation import Activation, gate_value
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_active import glu_active
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.glu_predicted import glu_predicted
from prosparse.kernels.linear import linear
from prosparse.kernels.tally import PREDICTED, SCANNED_NAMED, SIZE
from prosparse.kernels.weight import Weight

Whole = Callable[[Tensor, Weight, Weight, Weight, Activation, Tensor], Tensor]
WHOLE: dict[str, Whole] = {"dense": glu_dense, "exact": glu_exact}


@dataclass(frozen=True, eq=False)
class HotPart:
    """What lies on the fast device.

    Args:
        gate: of hot neurons and those between, [n_gate, hidden].
        up, down: of hot neurons, [n_hot, hidden].
        activation: of the gate, and of up for dReLU.
        mode: dense, exact or predicted.
    """

    gate: Weight
    up: Weight
    down: Weight
    activation: Activation
    mode: str
    own: Weight = field(init=False)  # rows of the gate: of hot neurons
    between: Weight = field(init=False)  # and of those between

    def __post_init__(self) -> None:
        hot = self.up.shape[0]
        object.__setattr__(self, "own", _rows(self.gate, 0, hot))
        object.__setattr__(self, "between", _rows(self.gate, hot, self.gate.shape[0]))

    def hand_over(self, x: Tensor) -> ActiveNeurons | None:
        """What is open between the cuts, by number from the first cut on, with values; None where nothing is between.

        In mode predicted also what was not predicted: the other device leaves it out.
        """
        between = self.between.shape[0]
        if not between:
            return None
        if self.mode != "dense":
            return gate_select(x, self.between, self.activation)
        value = gate_value(linear(x, self.between).float(), self.activation.code, self.activation.threshold)
        index = torch.arange(between, dtype=torch.int32, device=x.device)
        return ActiveNeurons(index, _count(index), value)

    def compute(self, x: Tensor, predicted: ActiveNeurons | None, tally: Tensor) -> Tensor | None:
        """FFN output of the hot neurons, [tokens, hidden]; None where there are none. tally is [8] int64."""
        hot, count = self.up.shape[0], None
        if predicted is not None:
            count = _below(predicted, hot)
            if self.between.shape[0]:
                named = _below(predicted, self.gate.shape[0]) - count
                tally[PREDICTED] += named[0]
                tally[SCANNED_NAMED] += named[0]
        if not hot:
            return None
        own = (x, self.own, self.up, self.down)
        if predicted is None or count is None:
            return WHOLE[self.mode](*own, self.activation, tally[:SIZE])
        return glu_predicted(*own, ActiveNeurons(predicted.index, count), self.activation, tally[:SIZE])


@dataclass(frozen=True, eq=False)
class ColdPart:
    """What lies on the other device.

    Args:
        gate: of cold neurons, [neurons - n_gate, hidden].
        up, down: of those between and of cold ones, [neurons - n_hot, hidden].
        activation, mode: as those of the hot part.
        hot: neurons of the hot part.
    """

    gate: Weight
    up: Weight
    down: Weight
    activation: Activation
    mode: str
    hot: int
    own_up: Weight = field(init=False)  # rows of up and down: of cold neurons
    own_down: Weight = field(init=False)

    def __post_init__(self) -> None:
        rows = self.up.shape[0]
        between = rows - self.gate.shape[0]
        object.__setattr__(self, "own_up", _rows(self.up, between, rows))
        object.__setattr__(self, "own_down", _rows(self.down, between, rows))

    def compute(
        self, x: Tensor, between: Callable[[], ActiveNeurons | None], predicted: Tensor | None, tally: Tensor
    ) -> Tensor | None:
        """FFN output of the active ones among these neurons, [tokens, hidden]; None where none is.

        Args:
            x: normed input, [tokens, hidden].
            between: waits for what the hot part hands over. Before it is called, cold neurons are computed.
            predicted: ids of the whole list, [count]; None in other modes.
            tally: [4] int64.
        """
        y = self._cold(x, predicted, tally)
        handed = between()
        if handed is None:
            return y
        handed = handed if predicted is None else self._named(handed, predicted)
        if not int(handed.count):
            return y
        more = glu_active(x, self.up, self.down, handed, self.activation, tally)
        return more if y is None else y.add_(more)

    def _cold(self, x: Tensor, predicted: Tensor | None, tally: Tensor) -> Tensor | None:
        cold = self.gate.shape[0]
        if not cold:
            return None
        own = (x, self.gate, self.own_up, self.own_down)
        if predicted is None:
            return WHOLE[self.mode](*own, self.activation, tally)
        first = self.hot + self.up.shape[0] - cold
        index = predicted[predicted >= first] - first
        if not index.numel():
            return None
        return glu_predicted(*own, ActiveNeurons(index, _count(index)), self.activation, tally)

    def _named(self, handed: ActiveNeurons, predicted: Tensor) -> ActiveNeurons:
        """Of a list, what is predicted too."""
        assert handed.value is not None, "what is handed over has its values"
        count = int(handed.count)  # what is beyond it is undefined
        kept = torch.isin(handed.index[:count] + self.hot, predicted).nonzero().flatten()
        return ActiveNeurons(handed.index[kept], _count(kept), handed.value[:, kept])


def _rows(weight: Weight, first: int, end: int) -> Weight:
    return Weight(weight.codes[first:end], weight.packed_columns)


def _below(listed: ActiveNeurons, end: int) -> Tensor:
    """How many ids of a list are below `end`, [1] int32 on its device."""
    live = torch.arange(listed.index.numel(), device=listed.index.device) < listed.count
    return (live & (listed.index < end)).sum(dtype=torch.int32).view(1)


def _count(index: Tensor) -> Tensor:
    """The length of a list all of which is meant, [1] int32, without a host sync."""
    return torch.full((1,), index.numel(), dtype=torch.int32, device=index.device)
