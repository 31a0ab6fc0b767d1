"""Gated FFN blocks: residual -> residual + scale * down^T (act(gate x) * up x),  x = norm(residual).

Every block prefills the same way, with dense GEMMs: over the many tokens of a prompt nearly every neuron is active for
some token, and a GEMM reads each weight once for all of them. The blocks differ in how they decode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.activation import KINDS, Activation, gate_value, up_value
from prosparse.kernels.add_scaled import add_scaled
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.decode_layers import Glu
from prosparse.kernels.glu_active import weigh
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.glu_values import glu_values
from prosparse.kernels.linear import gemm_transposed, linear, working_dtype
from prosparse.kernels.rms_norm import rms_norm
from prosparse.kernels.tally import DOWN_ROWS, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight

View = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class GatedFFN(ABC):
    """What all gated FFN blocks share: weights, norm, scale, add, and the prefill.

    Args:
        norm: RMSNorm weight, [hidden] float32.
        norm_eps: its epsilon.
        gate, up, down: [neurons, hidden] each, one format; down has one neuron per row.
        activation: of the gate, and of up for dReLU.
        scale: factor on the output before it is added to the residual.
    """

    def __init__(
        self,
        norm: Tensor,
        norm_eps: float,
        gate: Weight,
        up: Weight,
        down: Weight,
        activation: Activation,
        scale: float,
    ) -> None:
        self.norm, self.norm_eps, self.scale = norm, norm_eps, scale
        self.gate, self.up, self.down, self.activation = gate, up, down, activation

    def prefill(self, residual: Tensor, view: View | None = None) -> Tensor:
        """Many tokens, dense: [tokens, hidden] float32 to the same. A GEMM rounds the gate to its dtype first.

        Up to `MAX_ROWS` tokens are a step of mode dense, whose bits do not depend on threads or other tokens.

        `view` sees what a measurement needs: it is called with the residual and the normed input, [tokens, hidden],
        act(gate) and act(gate) * up, [tokens, neurons], and returns what goes into down in place of the last.
        """
        tokens, act = residual.shape[0], self.activation
        if tokens <= MAX_ROWS and view is None:
            y = glu_dense(self.normed(residual), self.gate, self.up, self.down, act, new_tally(residual.device))
            return add_scaled(residual, y, self.scale)
        x = rms_norm(residual, self.norm, self.norm_eps, working_dtype(self.gate, tokens))
        g, u = linear(x, self.gate), linear(x, self.up)
        if view is None:
            h = glu_values(g, u, act)
        else:
            value = gate_value(g.float(), act.code, act.threshold)
            h = view(residual, self.normed(residual), value, weigh(value, up_value(u.float(), act.on_up)))
        return add_scaled(residual, gemm_transposed(h, self.down), self.scale)

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """One step: [tokens, hidden] float32 to the same; what it did is added to tally, [4] int64."""
        if residual.shape[0] > MAX_ROWS:
            raise ValueError(
                f"ffn: a decode step takes at most {MAX_ROWS} tokens, got {residual.shape[0]}; prefill them"
            )
        return torch.add(residual, self._compute(residual, self.normed(residual), tally), alpha=self.scale)

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        """Bytes of weights that decode steps had to read which tallied this."""
        rows = done[UP_ROWS] * self.up.row_bytes + done[DOWN_ROWS] * self.down.row_bytes
        return steps * self.gate.nbytes + rows

    def normed(self, residual: Tensor) -> Tensor:
        """The input of the gate, from the residual."""
        return rms_norm(residual, self.norm, self.norm_eps)

    def parts(self) -> tuple[Any, ...]:
        """What it is made of, in the order in which it is made."""
        return self.norm, self.norm_eps, self.gate, self.up, self.down, self.activation, self.scale

    def gate_of(self, x: Tensor) -> Tensor:
        """Pre-activations of normed inputs, [tokens, neurons] float32."""
        return linear(x, self.gate)

    def at_threshold(self, x: Tensor, threshold: float, dense: bool, tally: Tensor) -> Tensor:
        """What an exact or a dense step computes of x, with gates that open from any threshold on, also a negative one.

        So one input meets any activation sparsity: for timing.
        """
        op = torch.ops.prosparse.glu_dense if dense else torch.ops.prosparse.glu_exact
        codes, on_up = (self.gate.codes, self.up.codes, self.down.codes), self.activation.on_up
        return op(x, *codes, KINDS.index("fatrelu"), threshold, on_up, tally)

    @abstractmethod
    def glu(self) -> Glu | None:
        """What `decode` computes, for an op that does whole layers; None where that op does not know it."""

    @abstractmethod
    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        """FFN output for residual and normed input x, [tokens, hidden] each."""


class DenseFFN(GatedFFN):
    """Reads every weight: the dense baseline, and the path of models whose activation makes no zeros."""

    def glu(self) -> Glu:
        return Glu(self.norm, self.gate, self.up, self.down, self.activation, dense=True)

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        return glu_dense(x, self.gate, self.up, self.down, self.activation, tally)


class ExactFFN(GatedFFN):
    """Reads the gate, then up and down of the neurons it opens: skips true zeros only."""

    def glu(self) -> Glu:
        return Glu(self.norm, self.gate, self.up, self.down, self.activation, dense=False)

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        return glu_exact(x, self.gate, self.up, self.down, self.activation, tally)
