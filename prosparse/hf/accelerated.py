"""A module of a live transformers model whose few-token steps run on our kernels, without the kernels.

The module object stays where it is, with its children, its hooks and its names; only its class changes, to a subclass
of its own (`AcceleratedLlamaMLP` of `LlamaMLP`). down is transposed once, in place: its Parameter becomes the
[hidden, neurons] view of [neurons, hidden] memory, so a neuron is one contiguous row for the kernels, and everybody
else still sees the shape that transformers expects.
"""

from __future__ import annotations

import functools
import types
from typing import Any, cast

import torch
from torch import Tensor, nn

from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import new_tally

TALLY, TOKENS = "prosparse_tally", "prosparse_tokens"


class Accelerated(nn.Module):
    """Mixed into a module's class, whose own forward is the dense path.

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

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For pickle and deepcopy: the class is made at run time, so it travels as the parts it was made from."""
        return _blank, (self.mixin(), self.dense_class), self.__dict__.copy()

    def mixin(self) -> type[Accelerated]:
        """What is mixed into `dense_class`."""
        return type(self).__bases__[0]


def accelerated_class(mixin: type[Accelerated], dense_class: type[nn.Module]) -> type[Accelerated]:
    """The accelerated subclass of a module's class; always the same one."""
    return _make_class(cast(Any, mixin), cast(Any, dense_class))


@functools.cache
def _make_class(mixin: type[Accelerated], dense_class: type[nn.Module]) -> type[Accelerated]:
    members = {"dense_class": dense_class, "__module__": __name__}
    return type(f"Accelerated{dense_class.__name__}", (mixin, dense_class), members)


def _blank(mixin: type[Accelerated], dense_class: type[nn.Module]) -> Accelerated:
    made = accelerated_class(mixin, dense_class)
    return made.__new__(made)


@torch.inference_mode(False)
@torch.no_grad()
def install(
    module: nn.Module,
    down: nn.Parameter,
    mixin: type[Accelerated],
    activation: Activation,
    mode: str,
    dense_class: type[nn.Module],
) -> None:
    """Make a module an accelerated one, in place; its counters start at 0.

    Args:
        module: what `mixin` can be mixed into.
        down: the parameter of its down projection.
        mixin: computes few tokens.
        activation: of the FFN.
        mode: "exact" or "dense".
        dense_class: what `uninstall` gives back.
    """
    counters = {TALLY: new_tally(down.device), TOKENS: torch.zeros(1, dtype=torch.int64, device=down.device)}
    if down.is_floating_point():  # packed rows lie as they must
        down.data = down.data.t().contiguous().t()  # the last step that can fail, and before anything has changed
    for name, counter in counters.items():
        module.register_buffer(name, counter, persistent=False)
    _change_class(module, accelerated_class(mixin, dense_class), {"activation": activation, "mode": mode})


@torch.inference_mode(False)
@torch.no_grad()
def uninstall(module: Accelerated, down: nn.Parameter) -> None:
    """Undo `install`: layout, class and attributes are as before."""
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
