"""A gated FFN that two devices share: the fast one has the hot neurons, the other one computes the cold ones meanwhile.

The normed input travels while the fast device scans its gate. What it opens of neurons whose up and down rows are on
the other device follows as a list with values. Then both compute, and one add joins them, so the result is that of an
undivided FFN but for the order of the sum. Where nothing of the other device's is active, nothing travels back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prosparse.kernels.activation import Activation, gate_value, up_value
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.add_scaled import add_scaled
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_active import weigh
from prosparse.kernels.glu_values import glu_values
from prosparse.kernels.linear import gemm_transposed, linear, working_dtype
from prosparse.kernels.rms_norm import rms_norm
from prosparse.kernels.tally import (
    COLD_DOWN_ROWS,
    COLD_STEPS,
    COLD_UP_ROWS,
    DOWN_ROWS,
    PREDICTED,
    SCANNED_NAMED,
    SHARED_SIZE,
    SIZE,
    UP_ROWS,
    new_tally,
)
from prosparse.kernels.weight import Weight

from .double_buffer import DoubleBuffer
from .ffn import View
from .link import Carrier, Link
from .parts import ColdPart, HotPart
from .selectors import Selector


@dataclass(frozen=True, eq=False)
class Turn:
    """What the fast device has made of a step's input so far.

    Args:
        x: normed input, [tokens, hidden] float32.
        input_there: waits for it on the slow device, and gives it there in a list.
        predicted: of mode predicted, the list.
        named_there, handed_there: wait there for that list, and for what is open between the cuts.
    """

    x: Tensor
    input_there: Callable[[], list[Tensor]]
    predicted: ActiveNeurons | None = None
    named_there: Callable[[], list[Tensor]] | None = None
    handed_there: Callable[[], list[Tensor]] | None = None


class HybridFFN:
    """One layer's FFN on two devices. Residuals are on the fast one.

    Args:
        norm: RMSNorm weight, [hidden] float32, on the fast device.
        norm_eps: its epsilon.
        hot, cold: (gate, up, down) on either device, in hot-first order, one format: see `parts`.
        order: which neuron of the model is in each place, [neurons] int64.
        activation: of the gate, and of up for dReLU.
        scale: factor on the output before it is added to the residual.
        mode: dense, exact or predicted.
        link: between the devices; all layers share it.
        buffer: through which cold weights pass in a prefill; all layers share it.
        selector: of mode predicted, over neurons in this order.

    Attributes:
        seen: how often each neuron was active in prompts, [neurons] int64, where that is asked for: see `exchange`.
    """

    def __init__(
        self,
        norm: Tensor,
        norm_eps: float,
        hot: tuple[Weight, Weight, Weight],
        cold: tuple[Weight, Weight, Weight],
        order: Tensor,
        activation: Activation,
        scale: float,
        mode: str,
        link: Link,
        buffer: DoubleBuffer,
        selector: Selector | None = None,
    ) -> None:
        self.norm, self.norm_eps, self.activation, self.scale, self.mode = norm, norm_eps, activation, scale, mode
        self.hot = HotPart(*hot, activation, mode)
        self.cold = ColdPart(*cold, activation, mode, hot[1].shape[0])
        self.order, self.rank = order, order.argsort()
        self.link, self.buffer, self.selector = link, buffer, selector
        self.neurons = hot[0].shape[0] + cold[0].shape[0]
        self.seen: Tensor | None = None

    def prefill(self, residual: Tensor, view: View | None = None) -> Tensor:
        """Many tokens, dense: [tokens, hidden] float32 to the same; see `GatedFFN.prefill`.

        Everything is computed on the fast device, where cold rows come through the buffer. `view` sees neurons in the
        model's own order.
        """
        dtype, act = working_dtype(self.hot.gate, residual.shape[0]), self.activation
        x = rms_norm(residual, self.norm, self.norm_eps, dtype)
        with self.link.lock:
            g, u = self._project(x, self.hot.gate, self.cold.gate), self._project(x, self.hot.up, self.cold.up)
            if view is None:
                h = glu_values(g, u, act)
            else:
                rank, order = self.rank.to(g.device), self.order.to(g.device)
                value = gate_value(g.float(), act.code, act.threshold)[:, rank]
                h = weigh(value, up_value(u.float(), act.on_up)[:, rank])
                h = view(residual, rms_norm(residual, self.norm, self.norm_eps), value, h)[:, order]
            if self.seen is not None:
                self.seen += (h != 0).sum(0)
            y = self._summed(h)
        return add_scaled(residual, y, self.scale)

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """One step: [tokens, hidden] float32 to the same; what it did is added to tally, [8] int64."""
        if residual.shape[0] > MAX_ROWS:
            raise ValueError(
                f"ffn: a decode step takes at most {MAX_ROWS} tokens, got {residual.shape[0]}; prefill them"
            )
        with self.link.lock:
            return self._rest(residual, residual, self.send_input(residual, self.link), tally)

    # A step in its parts. What the fast device does is launches alone: nothing of it is read by the host but what is
    # sent through the carrier. In between the host calls `compute_cold`.

    def send_input(self, residual: Tensor, carrier: Carrier) -> Turn:
        """Fast device: norm the input, and send it."""
        x = rms_norm(residual, self.norm, self.norm_eps)
        return Turn(x, carrier.send("input", [x]))

    def send_lists(self, residual: Tensor, turn: Turn, carrier: Carrier) -> Turn:
        """Fast device: send what is predicted, and what is open between the cuts."""
        predicted = named = between = None
        if self.selector is not None:
            predicted = self.selector.select(residual, turn.x)
            named = carrier.send("named", [predicted.index, predicted.count])
        handed = self.hot.hand_over(turn.x)
        if handed is not None:
            assert handed.value is not None, "what is handed over has its values"
            between = carrier.send("handed", [handed.index, handed.count, handed.value])
        return Turn(turn.x, turn.input_there, predicted, named, between)

    def compute_hot(self, residual: Tensor, turn: Turn, tally: Tensor) -> Tensor:
        """Fast device: the residual with the output of the hot neurons added."""
        y = self.hot.compute(turn.x, turn.predicted, tally)
        return residual if y is None else torch.add(residual, y, alpha=self.scale)

    def compute_cold(self, turn: Turn, done: Tensor) -> Tensor | None:
        """Slow device: the output of its neurons, [tokens, hidden]; None where none is active. Waits for what it needs.

        What it did is added to done, [8] int64 there.
        """

        def between() -> ActiveNeurons | None:
            return None if turn.handed_there is None else ActiveNeurons(*turn.handed_there())

        named = None
        if turn.named_there is not None:
            index, count = turn.named_there()
            named = index[: int(count)]
        there = self.cold.compute(turn.input_there()[0], between, named, done[:SIZE])
        if there is not None:
            done[COLD_UP_ROWS], done[COLD_DOWN_ROWS], done[COLD_STEPS] = done[UP_ROWS], done[DOWN_ROWS], 1
        return there

    def add_cold(self, residual: Tensor, back: Tensor) -> Tensor:
        """Fast device: the residual with that output added."""
        return torch.add(residual, back, alpha=self.scale)

    @property
    def starts_early(self) -> bool:
        """Whether the slow device has work that waits for the input and for no list."""
        return self.mode != "predicted" and self.cold.gate.shape[0] > 0 and self.hot.between.shape[0] > 0

    @property
    def has_hot(self) -> bool:
        """Whether there is anything to do for the fast device behind the lists."""
        return self.hot.up.shape[0] > 0 or (self.selector is not None and self.hot.between.shape[0] > 0)

    def bare_prefill(self, x: Tensor) -> Tensor:
        """The FFN alone, for whoever has norm, scale and add: of many normed tokens, [tokens, hidden] to float32."""
        x = x.to(working_dtype(self.hot.gate, x.shape[0]))
        with self.link.lock:
            g, u = self._project(x, self.hot.gate, self.cold.gate), self._project(x, self.hot.up, self.cold.up)
            return self._summed(glu_values(g, u, self.activation))

    def bare_decode(self, x: Tensor, tally: Tensor) -> Tensor:
        """As `bare_prefill`, of one step: [tokens, hidden] float32 to the same; tally is as of `decode`."""
        with self.link.lock:
            return self._rest(torch.zeros_like(x), x, Turn(x, self.link.send("input", [x])), tally)

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        """Bytes of weights that decode steps had to read which tallied this, on both devices."""
        up, gate = self.hot.up, self.hot.gate
        rows = done[UP_ROWS] * up.row_bytes + done[DOWN_ROWS] * self.hot.down.row_bytes
        if self.selector is None:
            return rows + steps * self.neurons * gate.row_bytes
        scanned = steps * self.hot.between.shape[0] + done[PREDICTED] - done[SCANNED_NAMED]
        return rows + scanned * gate.row_bytes + steps * self.selector.nbytes

    def glu(self) -> None:
        """None: no op does what two devices share."""
        return None

    def audit(self, residual: Tensor) -> tuple[int, int]:
        """How many neurons are active for a step's tokens, [tokens, hidden], and how many of them are predicted."""
        assert self.selector is not None, "there is an audit in mode predicted alone"
        x = rms_norm(residual, self.norm, self.norm_eps)
        predicted = self.selector.select(residual, x)
        named, first = predicted.index[: int(predicted.count)].to(self.link.slow), 0
        active = found = 0
        for gate in (self.hot.gate, self.cold.gate):
            if gate.shape[0]:
                opened = gate_select(x.to(gate.codes.device), gate, self.activation)
                ids = opened.index[: int(opened.count)].to(self.link.slow) + first
                active, found = active + ids.numel(), found + int(torch.isin(ids, named).sum())
            first = gate.shape[0]
        return active, found

    def _rest(self, base: Tensor, residual: Tensor, turn: Turn, tally: Tensor) -> Tensor:
        """base and what the FFN adds to it, once the input is sent; `residual` is what a selector looks at."""
        turn = self.send_lists(residual, turn, self.link)
        base, done = self.compute_hot(base, turn, tally), new_tally(self.link.slow, size=SHARED_SIZE)
        there = self.compute_cold(turn, done)
        if there is None:
            return base
        back, counts = self.link.bring("output", [there, done])
        tally += counts
        return self.add_cold(base, back)

    def _project(self, x: Tensor, hot: Weight, cold: Weight) -> Tensor:
        """x by the rows of a matrix in two parts, [tokens, rows of both]."""
        out, start = x.new_empty(x.shape[0], hot.shape[0] + cold.shape[0]), 0
        for block in self._blocks(hot, cold):
            end = start + block.shape[0]
            out[:, start:end] = linear(x, block)
            start = end
        return out

    def _summed(self, h: Tensor) -> Tensor:
        """h [tokens, neurons], hot first, by down: [tokens, hidden] float32."""
        y, start = torch.zeros(h.shape[0], self.hot.down.shape[1], device=h.device), 0
        for block in self._blocks(self.hot.down, self.cold.down):
            end = start + block.shape[0]
            y += gemm_transposed(h[:, start:end], block)
            start = end
        return y

    def _blocks(self, hot: Weight, cold: Weight) -> Iterator[Weight]:
        """The rows of a matrix in two parts, block by block on the fast device; no large one is unpacked whole."""
        step = self.buffer.rows_of_block(hot) if hot.is_packed else hot.shape[0]
        for start in range(0, hot.shape[0], max(step, 1)):
            yield Weight(hot.codes[start : start + step], hot.packed_columns)
        yield from self.buffer.blocks(cold)
