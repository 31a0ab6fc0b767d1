"""The first Linear of an FFN without up projection (OPT, Falcon) in mode predicted: rows that a guess does not name are
left out, and what the activation gets of them is 0, which it keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prosparse.kernels import linear_active  # noqa: F401  importing it registers the op
from prosparse.kernels.checks import MAX_ROWS

from .accelerated import Accelerated


class AcceleratedFirst(Accelerated):
    """Mixed into the class of such a Linear. Everything but a step of 1 to `MAX_ROWS` tokens takes its own forward."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """x is [..., hidden]; the result [..., neurons], 0 where nothing was named."""
        tokens = x.numel() // x.shape[-1]
        if self.guess is None or not 1 <= tokens <= MAX_ROWS or not self._runs_on_kernels(x):
            return super().forward(x)
        bias = self.bias
        counted = x.dim() < 3 or x.shape[-2] == 1
        tally = self.prosparse_tally if counted else torch.zeros_like(self.prosparse_tally)
        flat = x.reshape(tokens, -1).contiguous()
        named = self.guess.select(flat, flat)
        out = torch.ops.prosparse.linear_active(
            flat, self.weight, None if bias is None else bias.float(), named.index, named.count, tally
        )
        if counted:
            self.count(tokens)
        return out.view(*x.shape[:-1], -1)

    def _runs_on_kernels(self, x: Tensor) -> bool:
        weight = self.weight
        if weight.dtype is not x.dtype or weight.device != x.device or weight.stride(1) != 1:
            return False
        wants_grad = x.requires_grad or weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        return not (wants_grad and torch.is_grad_enabled())
