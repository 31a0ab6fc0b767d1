"""A gated FFN of a live transformers model on our kernels. gate and up are used as they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prosparse.kernels import glu_dense, glu_exact, glu_predicted  # noqa: F401  importing them registers the ops
from prosparse.kernels.checks import MAX_ROWS

from .accelerated import Accelerated

CHILDREN = ("gate_proj", "up_proj", "down_proj")
OBSERVED = (*CHILDREN, "act_fn")


class AcceleratedGLU(Accelerated):
    """Mixed into the class of a gated FFN; the class's own forward is the dense path.

    A step of 1 to `MAX_ROWS` tokens goes to the kernels. Everything else takes the model's own forward: more tokens,
    autograd, dropout in training mode, another dtype than the weights', weights that are elsewhere (offloaded) or were
    replaced by ones in another layout, projections that are no plain Linears any more (adapters) or have got a bias,
    another activation or threshold, and a layer with forward hooks on its projections or activation, which would see
    nothing.

    Steps of one token per sequence are counted for `stats`; short prompts and the guesses of assisted decoding are not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x is [..., hidden]; so is the result."""
        tokens = x.numel() // x.shape[-1]
        if not 1 <= tokens <= MAX_ROWS or not self._runs_on_kernels(x):
            return super().forward(x)
        flat = x.reshape(tokens, -1).contiguous()
        counted = x.dim() < 3 or x.shape[-2] == 1
        out = self._compute(flat, self.prosparse_tally if counted else torch.zeros_like(self.prosparse_tally))
        if counted:
            self.count(tokens)
        return out.view(x.shape)

    def _compute(self, x: Tensor, tally: Tensor) -> Tensor:
        # The ops themselves and not their checked doors: those ask again what `_runs_on_kernels` has answered, for
        # 20 us a layer (2-core x86 machine), 1 ms a token at 52 layers.
        gate, up, down = self._rows()
        act = self.activation
        how = (act.code, act.threshold, act.on_up, tally)
        if self.guess is not None:
            named = self.guess.select(x, x)
            return torch.ops.prosparse.glu_predicted(x, gate, up, down, named.index, named.count, *how)
        op = torch.ops.prosparse.glu_exact if self.mode == "exact" else torch.ops.prosparse.glu_dense
        return op(x, gate, up, down, *how)

    def _rows(self) -> list[Tensor]:
        """gate, up and down with one neuron per row."""
        gate, up, down = weights_of(self)
        return [gate, up, down.t()]

    def _runs_on_kernels(self, x: Tensor) -> bool:
        children = self._modules
        for name in OBSERVED:
            child = children.get(name)
            if child is not None and (child._forward_hooks or child._forward_pre_hooks):
                return False
        wants_grad = x.requires_grad
        for name in CHILDREN:
            child = children[name]
            if type(child) is not nn.Linear or ("forward" in child.__dict__ and "_hf_hook" not in child.__dict__):
                return False
            weight = child._parameters.get("weight")
            if weight is None or weight.dtype is not x.dtype or weight.device != x.device:
                return False
            if child._parameters["bias"] is not None or weight.stride(0 if name == CHILDREN[2] else 1) != 1:
                return False
            wants_grad = wants_grad or weight.requires_grad
        if self.training and self.has_dropout:
            return False
        return self.computes_as_found() and not (wants_grad and torch.is_grad_enabled())


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """gate, up and down as transformers has them, [neurons, hidden] twice and [hidden, neurons]; or packed rows."""
    children: Any = module._modules
    return [children[name].weight for name in CHILDREN]
