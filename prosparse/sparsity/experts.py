"""A block of several gated FFNs, of which a router chooses some for every token (Shazeer et al., 2017).

    residual + scale * sum over the chosen e of p[e] * ffn_e(x),  p = softmax of the chosen scores,  x = norm(residual)

A decode step reads the router and the chosen experts alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prosparse.kernels.activation import Activation, gate_value, up_value
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.decode_layers import Glu
from prosparse.kernels.glu_active import weigh
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.linear import gemm_transposed, linear
from prosparse.kernels.rms_norm import rms_norm
from prosparse.kernels.tally import DOWN_ROWS, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight


class ExpertsFFN:
    """Experts that read all of their weights, as those of SiLU models must.

    Args:
        norm: RMSNorm weight, [hidden] float32.
        norm_eps: its epsilon.
        router: [experts, hidden] float32.
        chosen: experts per token.
        gate, up, down: [experts * neurons, hidden] each, expert below expert; down has one neuron per row.
        activation: of the gate.
        scale: factor on the output before it is added to the residual.
    """

    def __init__(
        self,
        norm: Tensor,
        norm_eps: float,
        router: Tensor,
        chosen: int,
        gate: Weight,
        up: Weight,
        down: Weight,
        activation: Activation,
        scale: float,
    ) -> None:
        self.norm, self.norm_eps, self.router, self.chosen = norm, norm_eps, Weight(router), chosen
        self.gate, self.up, self.down, self.activation, self.scale = gate, up, down, activation, scale
        neurons = gate.shape[0] // len(router)
        self.experts = [
            tuple(Weight(w.codes[e * neurons : (e + 1) * neurons], w.packed_columns) for w in (gate, up, down))
            for e in range(len(router))
        ]

    def prefill(self, residual: Tensor) -> Tensor:
        """Many tokens, [tokens, hidden] float32 to the same: a dense GEMM over the tokens of each expert."""
        if residual.shape[0] <= MAX_ROWS:
            return self.decode(residual, new_tally(residual.device))
        x, y = rms_norm(residual, self.norm, self.norm_eps), torch.zeros_like(residual)
        for expert, tokens, share in self._route(x):
            gate, up, down = self.experts[expert]
            own = x[tokens]
            value = gate_value(linear(own, gate), self.activation.code, self.activation.threshold)
            h = weigh(value, up_value(linear(own, up), self.activation.on_up))
            y[tokens] += share * gemm_transposed(h, down)
        return torch.add(residual, y, alpha=self.scale)

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """One step: [tokens, hidden] float32 to the same; what it did is added to tally, [4] int64."""
        if residual.shape[0] > MAX_ROWS:
            raise ValueError(
                f"ffn: a decode step takes at most {MAX_ROWS} tokens, got {residual.shape[0]}; prefill them"
            )
        x, y = rms_norm(residual, self.norm, self.norm_eps), torch.zeros_like(residual)
        for expert, tokens, share in self._route(x):
            y[tokens] += share * glu_dense(x[tokens], *self.experts[expert], self.activation, tally)
        return torch.add(residual, y, alpha=self.scale)

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        """Bytes of weights that decode steps had to read which tallied this; of gate it is as many rows as of up."""
        rows = done[UP_ROWS] * (self.gate.row_bytes + self.up.row_bytes) + done[DOWN_ROWS] * self.down.row_bytes
        return steps * self.router.nbytes + rows

    def glu(self) -> Glu | None:
        """None: these are several."""
        return None

    def _route(self, x: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """(expert, its tokens [n], what they take of it [n, 1]) for every expert that some token of x chooses."""
        scores, experts = linear(x, self.router).topk(self.chosen, dim=-1)
        share = scores.softmax(dim=-1)
        routed = []
        for expert in experts.unique().tolist():
            tokens, place = (experts == expert).nonzero(as_tuple=True)
            routed.append((expert, tokens, share[tokens, place, None]))
        return routed
