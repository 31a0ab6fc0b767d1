"""A module of a live transformers model whose few-token steps run on our kernels, without the kernels.

The module object stays where it is, with its children, its hooks and its names; only its class changes, to a subclass
of its own (`AcceleratedLlamaMLP` of `LlamaMLP`). down is transposed once, in place: its Parameter becomes the
[hidden, neurons] view of [neurons, hidden] memory, so a neuron is one contiguous row for the kernels, and everybody
else still sees the shape that transformers expects.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from prosparse.kernels.activation import Activation
from prosparse.kernels.guess import Guess
from prosparse.kernels.tally import SIZE, new_tally

TALLY, TOKENS, STEPS = "prosparse_tally", "prosparse_tokens", "prosparse_steps"


class Accelerated(nn.Module):
    """Mixed into a module's class, whose own forward is the dense path.

    Attributes:
        dense_class: the class that the module had.
        activation: of the FFN.
        mode: "exact", "dense" or "predicted".
        guess: of mode predicted: which neurons to look at.
        act_found: the module's own activation, and its threshold, as they were found.
        has_dropout: whether it drops outputs in training mode, which no kernel does.
        tally_size: counters of a step, see `kernels.tally`.
    """

    tally_size = SIZE
    dense_class: type[nn.Module]
    activation: Activation
    mode: str
    guess: Guess | None
    act_found: tuple[Any, float | None]
    has_dropout: bool
    prosparse_tally: Tensor
    prosparse_tokens: Tensor
    prosparse_steps: Tensor

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For pickle and deepcopy: the class is made at run time, so it travels as the parts it was made from."""
        return _blank, (self.mixin(), self.dense_class), self.__dict__.copy()

    def _apply(self, *arguments: Any, **named: Any) -> Any:
        """`.to()` and its like: the guess follows to another device, and keeps its dtypes."""
        super()._apply(*arguments, **named)
        if self.guess is not None:
            self.guess = self.guess.to(self.prosparse_tally.device)
        return self

    def counters(self) -> list[Tensor]:
        """What `stats` reads, all of it."""
        return [self.prosparse_tally, self.prosparse_tokens, self.prosparse_steps]

    def count(self, tokens: int) -> None:
        """One step of so many tokens, for `stats`."""
        self.prosparse_tokens.add_(tokens)
        if self.guess is not None:
            self.prosparse_steps.add_(1)

    def computes_as_found(self) -> bool:
        """Whether the module's own activation is still that which was found."""
        act, threshold = self.act_found
        own = self._modules.get("act_fn") if isinstance(act, nn.Module) else getattr(self, "act_fn", None)
        return own == act and getattr(own, "threshold", None) == threshold

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
    down: nn.Parameter | None,
    mixin: type[Accelerated],
    activation: Activation,
    mode: str,
    dense_class: type[nn.Module],
    guess: Guess | None = None,
    device: torch.device | None = None,
) -> None:
    """Make a module an accelerated one, in place; its counters start at 0.

    Args:
        module: what `mixin` can be mixed into.
        down: the parameter of its down projection; None where it has none.
        mixin: computes few tokens.
        activation: of the FFN.
        mode: "exact", "dense" or "predicted".
        dense_class: what `uninstall` gives back.
        guess: of mode predicted.
        device: where it computes; None is where its weights are.
    """
    if device is None:
        device = next(module.parameters()).device if down is None else down.device
    counters = {TALLY: new_tally(device, size=mixin.tally_size)}
    counters |= {name: torch.zeros(1, dtype=torch.int64, device=device) for name in (TOKENS, STEPS)}
    if down is not None and down.is_floating_point():  # packed rows lie as they must
        # the last step that can fail, and nothing has changed yet
        _lay_out(down, lambda data: data.t().contiguous().t())
    for name, counter in counters.items():
        module.register_buffer(name, counter, persistent=False)
    has_dropout = any("dropout" in name for name in (*module.__dict__, *module._modules))
    attributes = {"activation": activation, "mode": mode, "guess": guess}
    attributes |= {"act_found": _act_of(module), "has_dropout": has_dropout}
    _change_class(module, accelerated_class(mixin, dense_class), attributes)


@torch.inference_mode(False)
@torch.no_grad()
def uninstall(module: Accelerated, down: nn.Parameter | None) -> None:
    """Undo `install`: layout, class and attributes are as before."""
    if down is not None:
        _lay_out(down, Tensor.contiguous)
    del module.activation, module.mode, module.guess, module.act_found, module.has_dropout
    for name in (TALLY, TOKENS, STEPS):
        delattr(module, name)
    module._non_persistent_buffers_set -= {TALLY, TOKENS, STEPS}
    _change_class(module, module.dense_class, {})


def _lay_out(parameter: nn.Parameter, data_of: Callable[[Tensor], Tensor]) -> None:
    """Replace a parameter's memory. One that was made in inference mode stays one of it: a mixture has no use."""
    with torch.inference_mode(parameter.is_inference()):
        parameter.data = data_of(parameter.data)


def _act_of(module: nn.Module) -> tuple[Any, float | None]:
    """What an FFN applies to its gate, and its threshold, by which a later change is found."""
    act = getattr(module, "act_fn", None)
    return act, getattr(act, "threshold", None)


def _change_class(module: nn.Module, wanted: type[nn.Module], attributes: dict[str, Any]) -> None:
    """Dispatch hooks of a device_map keep the forward they wrapped in `_old_forward`; it must follow the class."""
    wrapped = module.__dict__.get("_old_forward")
    if isinstance(wrapped, types.MethodType) and wrapped.__func__ is type(module).forward:
        attributes = {**attributes, "_old_forward": types.MethodType(wanted.forward, module)}
    module.__dict__.update(attributes)
    module.__class__ = wanted
