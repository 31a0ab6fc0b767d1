"""Neurons of a divided FFN change places: what a text needs comes to the fast device, for what it does not need.

A plan puts neurons where the text of its profile had them active. Prompts see every neuron, so they say what the text
at hand needs; what is exchanged are rows in place, so whatever holds the matrices, a recorded graph too, finds them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prosparse.kernels.weight import Weight

from .hybrid import HybridFFN

PRIOR = 256  # tokens that a profile counts for, beside those of prompts
KEPT = 0.5  # of what was counted, at each further prompt
CLEAR = 2.0  # standard deviations by which one neuron must have been active more often than another


class Exchange:
    """Of one FFN. Counts are in the order of the FFN's neurons.

    Args:
        ffn: it counts what is active in its prompts from now on.
        frequency: of the profile that it is divided by, in the same order, [neurons] float.
    """

    def __init__(self, ffn: HybridFFN, frequency: Tensor) -> None:
        self.ffn = ffn
        self._hot, self._gates = ffn.hot.up.shape[0], ffn.hot.gate.shape[0]
        self._counts = frequency.double() * PRIOR
        ffn.seen = torch.zeros(ffn.neurons, dtype=torch.int64, device=ffn.hot.gate.codes.device)
        self._pairs = torch.empty(2, 0, dtype=torch.int64)

    @property
    def pair_bytes(self) -> int:
        """That a pair moves at most, both ways together."""
        rows = 2 + (self._gates < self.ffn.neurons)
        return 2 * rows * self.ffn.hot.up.row_bytes

    def gains(self) -> Tensor:
        """Ask how many more of a token's active neurons would be hot after each exchange, [pairs] float64, descending.

        The hottest of the others for the coldest hot one, and so on, as long as what prompts have shown is clear.
        """
        ffn = self.ffn
        assert ffn.seen is not None, "it has counted since this was made"
        seen = ffn.seen.to("cpu", torch.float64, copy=True)
        ffn.seen.zero_()
        if bool(seen.any()):
            self._counts = KEPT * self._counts + seen
        pairs = min(self._hot, ffn.neurons - self._hot)
        gone = self._counts[: self._hot].argsort(stable=True)[:pairs]
        come = self._counts[self._hot :].argsort(descending=True, stable=True)[:pairs] + self._hot
        more = self._counts[come] - self._counts[gone]
        clear = more > CLEAR * (self._counts[come] + self._counts[gone]).sqrt()
        kept = int(clear.long().cumprod(0).sum())
        self._pairs = torch.stack([gone, come])[:, :kept]
        return more[:kept]

    def swap(self, pairs: int) -> None:
        """Do the first of the exchanges that `gains` told of."""
        if not pairs:
            return
        ffn, (gone, come) = self.ffn, self._pairs[:, :pairs]
        with ffn.link.lock:
            for hot, cold in ((ffn.hot.up, ffn.cold.up), (ffn.hot.down, ffn.cold.down)):
                _swap(hot, gone, cold, come - self._hot)
            far = come >= self._gates
            _swap(ffn.hot.gate, gone[~far], ffn.hot.gate, come[~far])
            _swap(ffn.hot.gate, gone[far], ffn.cold.gate, come[far] - self._gates)
            if ffn.selector is not None:
                guess = ffn.selector.guess
                second = guess.second if isinstance(guess.second, Tensor) else guess.second.codes
                for part in (guess.offset, second):
                    _swap_rows(part, gone, part, come)
            _swap_rows(ffn.order, gone, ffn.order, come)
            _swap_rows(self._counts, gone, self._counts, come)
            ffn.rank = ffn.order.argsort()


def _swap(one: Weight, of_one: Tensor, other: Weight, of_other: Tensor) -> None:
    _swap_rows(one.codes, of_one, other.codes, of_other)


def _swap_rows(one: Tensor, of_one: Tensor, other: Tensor, of_other: Tensor) -> None:
    """Rows of a tensor for those of another one, or of itself, on any device."""
    of_one, of_other = of_one.to(one.device), of_other.to(other.device)
    rows, others = one[of_one], other[of_other]
    one[of_one], other[of_other] = others.to(one.device), rows.to(other.device)
