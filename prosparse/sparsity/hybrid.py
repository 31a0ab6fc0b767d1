"""A gated FFN that two devices share: the fast one has the hot neurons, the other one computes the cold ones meanwhile.

The normed input travels while the fast device scans its gate. What it opens of neurons whose up and down rows are on
the other device follows as a list with values. Then both compute, and one add joins them, so the result is that of an
undivided FFN but for the order of the sum. Where nothing of the other device's is active, nothing travels back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from .link import Link
from .parts import ColdPart, HotPart
from .selectors import Selector


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
            y = self._summed(h)
        return add_scaled(residual, y, self.scale)

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """One step: [tokens, hidden] float32 to the same; what it did is added to tally, [8] int64."""
        if residual.shape[0] > MAX_ROWS:
            raise ValueError(
                f"ffn: a decode step takes at most {MAX_ROWS} tokens, got {residual.shape[0]}; prefill them"
            )
        x = rms_norm(residual, self.norm, self.norm_eps)
        with self.link.lock:
            return torch.add(residual, self._compute(residual, x, tally), alpha=self.scale)

    def bare_prefill(self, x: Tensor) -> Tensor:
        """The FFN alone, for whoever has norm, scale and add: of many normed tokens, [tokens, hidden] to float32."""
        x = x.to(working_dtype(self.hot.gate, x.shape[0]))
        with self.link.lock:
            g, u = self._project(x, self.hot.gate, self.cold.gate), self._project(x, self.hot.up, self.cold.up)
            return self._summed(glu_values(g, u, self.activation))

    def bare_decode(self, x: Tensor, tally: Tensor) -> Tensor:
        """As `bare_prefill`, of one step: [tokens, hidden] float32 to the same; tally is as of `decode`."""
        with self.link.lock:
            return self._compute(x, x, tally)

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

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        """FFN output for residual and normed input x, [tokens, hidden] each."""
        link = self.link
        input_there = link.send("input", [x])
        predicted = None if self.selector is None else self.selector.select(residual, x)
        named_there = None if predicted is None else link.send("named", [predicted.index, predicted.count])
        handed = self.hot.hand_over(x)
        handed_there = None
        if handed is not None:
            assert handed.value is not None, "what is handed over has its values"
            handed_there = link.send("handed", [handed.index, handed.count, handed.value])
        y = self.hot.compute(x, predicted, tally)

        def between() -> ActiveNeurons | None:
            return None if handed_there is None else ActiveNeurons(*handed_there())

        named = None
        if named_there is not None:
            index, count = named_there()
            named = index[: int(count)]
        done = new_tally(link.slow, size=SHARED_SIZE)
        there = self.cold.compute(input_there()[0], between, named, done[:SIZE])
        if there is not None:
            done[COLD_UP_ROWS], done[COLD_DOWN_ROWS], done[COLD_STEPS] = done[UP_ROWS], done[DOWN_ROWS], 1
            back, counts = link.bring("output", [there, done])
            tally += counts
            y = back if y is None else y + back
        return torch.zeros_like(x) if y is None else y

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
