"""The Linear that follows a ReLU in an FFN without up projection (OPT, Falcon): most of its input is exactly zero.

What is not zero is read from the input itself, so skipping the rest is exact whatever the module before it does. The
projection before the activation stays with PyTorch: every one of its rows is needed to know what is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prosparse.kernels import axpy_active  # noqa: F401  importing it registers the op
from prosparse.kernels.checks import MAX_ROWS

from .accelerated import Accelerated


class AcceleratedDown(Accelerated):
    """Mixed into the class of such a Linear.

    A step of 1 to `MAX_ROWS` tokens goes to the kernel. Everything else takes the module's own forward: more tokens,
    autograd, another dtype than the weight's, a weight that is elsewhere or was replaced by one in another layout.

    Counted for `stats` are steps of one token per sequence; where the model flattens its sequences before the FFN, as
    OPT does, all steps on the kernel.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, h: Tensor) -> Tensor:
        """h is [..., neurons]; the result [..., hidden]."""
        tokens = h.numel() // h.shape[-1]
        if not 1 <= tokens <= MAX_ROWS or not self._runs_on_kernels(h):
            return super().forward(h)
        down, bias = self.weight, self.bias
        counted = h.dim() < 3 or h.shape[-2] == 1
        tally = self.prosparse_tally if counted else torch.zeros_like(self.prosparse_tally)
        flat = h.reshape(tokens, -1).contiguous()
        out = torch.ops.prosparse.axpy_active(
            flat, down.t(), down.shape[0], None if bias is None else bias.float(), tally
        )
        if counted:
            self.count(tokens)
        return out.view(*h.shape[:-1], down.shape[0])

    def _runs_on_kernels(self, h: Tensor) -> bool:
        down = self.weight
        if down.dtype is not h.dtype or down.device != h.device or down.stride(0) != 1:
            return False
        wants_grad = h.requires_grad or down.requires_grad or (self.bias is not None and self.bias.requires_grad)
        return not (wants_grad and torch.is_grad_enabled())
