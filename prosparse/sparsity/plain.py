"""FFN blocks without up projection: residual -> residual + down^T act(gate x + bias) + bias,  x = norm(residual).

The blocks of OPT and Falcon. As the gated ones, they prefill with dense GEMMs and differ in how they decode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.activation import KINDS, Activation, gate_value
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.decode_layers import Glu
from prosparse.kernels.layer_norm import normalize
from prosparse.kernels.linear import gemm_transposed, linear
from prosparse.kernels.plain_dense import plain_dense
from prosparse.kernels.plain_exact import plain_exact
from prosparse.kernels.tally import DOWN_ROWS, new_tally
from prosparse.kernels.weight import Weight

from .ffn import View


class PlainFFN(ABC):
    """What all FFN blocks without up projection share.

    Args:
        norm, norm_bias: of the norm, [hidden] float32 each; one without a bias is RMSNorm.
        norm_eps: its epsilon.
        gate, down: [neurons, hidden] each, one format; down has one neuron per row.
        gate_bias, down_bias: [neurons] and [hidden] float32, or None.
        activation: of the gate.
        scale: factor on the output before it is added to the residual.
        post_norm: the norm follows the add, instead of preceding the gate.
    """

    def __init__(
        self,
        norm: Tensor,
        norm_bias: Tensor | None,
        norm_eps: float,
        gate: Weight,
        gate_bias: Tensor | None,
        down: Weight,
        down_bias: Tensor | None,
        activation: Activation,
        scale: float = 1.0,
        post_norm: bool = False,
    ) -> None:
        self.norm, self.norm_bias, self.norm_eps = norm, norm_bias, norm_eps
        self.gate, self.gate_bias, self.down, self.down_bias = gate, gate_bias, down, down_bias
        self.activation, self.scale, self.post_norm = activation, scale, post_norm

    def prefill(self, residual: Tensor, view: View | None = None) -> Tensor:
        """Many tokens, dense: [tokens, hidden] float32 to the same; see `GatedFFN.prefill`, whose view sees h twice."""
        x, act = self.normed(residual), self.activation
        if residual.shape[0] <= MAX_ROWS and view is None:
            tally = new_tally(residual.device)
            return self._add(residual, plain_dense(x, self.gate, self.gate_bias, self.down, self.down_bias, act, tally))
        h = gate_value(self.gate_of(x), act.code, act.threshold)
        if view is not None:
            h = view(residual, x, h, h)
        y = gemm_transposed(h, self.down)
        return self._add(residual, y if self.down_bias is None else y + self.down_bias)

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """One step: [tokens, hidden] float32 to the same; what it did is added to tally, [4] int64."""
        if residual.shape[0] > MAX_ROWS:
            raise ValueError(
                f"ffn: a decode step takes at most {MAX_ROWS} tokens, got {residual.shape[0]}; prefill them"
            )
        return self._add(residual, self._compute(residual, self.normed(residual), tally))

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        """Bytes of weights that decode steps had to read which tallied this."""
        return steps * self.gate.nbytes + done[DOWN_ROWS] * self.down.row_bytes

    def glu(self) -> Glu | None:
        """None: this is no gated FFN."""
        return None

    def normed(self, residual: Tensor) -> Tensor:
        """The input of the gate, from the residual."""
        return residual if self.post_norm else self._normed(residual)

    def parts(self) -> tuple[Any, ...]:
        """What it is made of, in the order in which it is made."""
        matrices = (self.gate, self.gate_bias, self.down, self.down_bias)
        return self.norm, self.norm_bias, self.norm_eps, *matrices, self.activation, self.scale, self.post_norm

    def gate_of(self, x: Tensor) -> Tensor:
        """Pre-activations of normed inputs, [tokens, neurons] float32."""
        g = linear(x, self.gate)
        return g if self.gate_bias is None else g + self.gate_bias

    def at_threshold(self, x: Tensor, threshold: float, dense: bool, tally: Tensor) -> Tensor:
        """See `GatedFFN.at_threshold`."""
        op = torch.ops.prosparse.plain_dense if dense else torch.ops.prosparse.plain_exact
        matrices = (self.gate.codes, self.gate_bias, self.down.codes, self.down_bias)
        return op(x, *matrices, KINDS.index("fatrelu"), threshold, tally)

    def _normed(self, residual: Tensor) -> Tensor:
        return normalize(residual, self.norm, self.norm_bias, self.norm_eps)

    def _add(self, residual: Tensor, y: Tensor) -> Tensor:
        added = torch.add(residual, y, alpha=self.scale)
        return self._normed(added) if self.post_norm else added

    @abstractmethod
    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        """FFN output for inputs x, [tokens, hidden], of this residual."""


class PlainDenseFFN(PlainFFN):
    """Reads every weight: the dense baseline."""

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        return plain_dense(x, self.gate, self.gate_bias, self.down, self.down_bias, self.activation, tally)


class PlainExactFFN(PlainFFN):
    """Reads the gate, then down of the neurons it opens: skips true zeros only."""

    def _compute(self, residual: Tensor, x: Tensor, tally: Tensor) -> Tensor:
        return plain_exact(x, self.gate, self.gate_bias, self.down, self.down_bias, self.activation, tally)
