"""A gated FFN of a live transformers model whose few-token steps run on our kernels.

The module object stays where it is, with its children, its hooks and its names; only its class changes, to a subclass
of its own (`AcceleratedLlamaMLP` of `LlamaMLP`). gate and up are used as they lie. down is transposed once, in place:
its Parameter becomes the [hidden, neurons] view of [neurons, hidden] memory, so a neuron is one contiguous row for the
kernels, and everybody else still sees the shape that transformers expects.
"""

from __future__ import annotations

import functools
import types
from typing import Any, cast

import torch
from torch import Tensor, nn

from prosparse.kernels import glu_dense, glu_exact  # noqa: F401  importing them registers the ops
from prosparse.kernels.activation import Activation
from prosparse.kernels.checks import MAX_ROWS
from prosparse.kernels.tally import new_tally

CHILDREN = ("gate_proj", "up_proj", "down_proj")
OBSERVED = (*CHILDREN, "act_fn")
TALLY, TOKENS = "prosparse_tally", "prosparse_tokens"


class AcceleratedGLU(nn.Module):
    """Mixed into the class of a gated FFN by `install`; the class's own forward is the dense path.

    A step of 1 to `MAX_ROWS` tokens goes to the kernels. Everything else takes the model's own forward: more tokens,
    autograd, another dtype than the weights', weights that are elsewhere (offloaded) or were replaced by ones in
    another layout, projections that are no plain Linears any more (adapters), and a layer with forward hooks on its
    projections or activation, which would see nothing.

    Steps of one token per sequence are counted for `stats`; short prompts and the guesses of assisted decoding are not.

    Attributes:
        dense_class: the class that the module had.
        activation: of the FFN.
        mode: "exact" or "dense".
    """

    dense_class: type[nn.Module]
    activation: Activation
    mode: str
    prosparse_tally: Tensor
    prosparse_tokens: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x is [..., hidden]; so is the result."""
        tokens = x.numel() // x.shape[-1]
        if not 1 <= tokens <= MAX_ROWS or not self._runs_on_kernels(x):
            return super().forward(x)
        # The ops themselves and not their checked doors: those ask again what `_runs_on_kernels` has answered, for
        # 20 us a layer (2-core x86 machine), 1 ms a token at 52 layers.
        op = torch.ops.prosparse.glu_exact if self.mode == "exact" else torch.ops.prosparse.glu_dense
        gate, up, down = weights_of(self)
        act, flat = self.activation, x.reshape(tokens, -1).contiguous()
        counted = x.dim() < 3 or x.shape[-2] == 1
        tally = self.prosparse_tally if counted else torch.zeros_like(self.prosparse_tally)
        out = op(flat, gate, up, down.t(), act.code, act.threshold, act.on_up, tally)
        if counted:
            self.prosparse_tokens.add_(tokens)
        return out.view(x.shape)

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
            weight = child.weight
            if weight.dtype is not x.dtype or weight.device != x.device:
                return False
            wants_grad = wants_grad or weight.requires_grad
        return weight.stride(0) == 1 and not (wants_grad and torch.is_grad_enabled())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For pickle and deepcopy: the class is made at run time, so it travels as the class it was made from."""
        return _blank, (self.dense_class,), self.__dict__.copy()


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """gate, up and down as transformers has them: [neurons, hidden] twice, [hidden, neurons]."""
    children: Any = module._modules
    return [children[name].weight for name in CHILDREN]


def accelerated_class(dense_class: type[nn.Module]) -> type[AcceleratedGLU]:
    """The accelerated subclass of a gated FFN's class; always the same one."""
    return _make_class(cast(Any, dense_class))


@functools.cache
def _make_class(dense_class: type[nn.Module]) -> type[AcceleratedGLU]:
    name = f"Accelerated{dense_class.__name__}"
    return type(name, (AcceleratedGLU, dense_class), {"dense_class": dense_class, "__module__": __name__})


def _blank(dense_class: type[nn.Module]) -> AcceleratedGLU:
    made = accelerated_class(dense_class)
    return made.__new__(made)


@torch.inference_mode(False)
@torch.no_grad()
def install(module: nn.Module, activation: Activation, mode: str, dense_class: type[nn.Module]) -> None:
    """Make a gated FFN an accelerated one, in place; its counters start at 0.

    Args:
        module: with children `CHILDREN`, plain Linears without bias.
        activation: as `read_activation` and the probe found it.
        mode: "exact" or "dense".
        dense_class: what `uninstall` gives back.
    """
    down = weights_of(module)[2]
    counters = {TALLY: new_tally(down.device), TOKENS: torch.zeros(1, dtype=torch.int64, device=down.device)}
    down.data = down.data.t().contiguous().t()  # the last step that can fail, and before anything has changed
    for name, counter in counters.items():
        module.register_buffer(name, counter, persistent=False)
    _change_class(module, accelerated_class(dense_class), {"activation": activation, "mode": mode})


@torch.inference_mode(False)
@torch.no_grad()
def uninstall(module: AcceleratedGLU) -> None:
    """Undo `install`: layout, class and attributes are as before."""
    down = weights_of(module)[2]
    down.data = down.data.contiguous()
    del module.activation, module.mode, module.prosparse_tally, module.prosparse_tokens
    module._non_persistent_buffers_set -= {TALLY, TOKENS}
    _change_class(module, module.dense_class, {})


def _change_class(module: nn.Module, wanted: type[nn.Module], attributes: dict[str, Any]) -> None:
    """Dispatch hooks of a device_map keep the forward they wrapped in `_old_forward`; it must follow the class."""
    wrapped = module.__dict__.get("_old_forward")
    if isinstance(wrapped, types.MethodType) and wrapped.__func__ is type(module).forward:
        attributes = {**attributes, "_old_forward": types.MethodType(wanted.forward, module)}
    module.__dict__.update(attributes)
    module.__class__ = wanted
