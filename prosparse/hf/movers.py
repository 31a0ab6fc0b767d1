"""Hooks that bring what a module of a divided model is called with to the device that it is on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Moved:
    """Copies of what all layers are given, such as masks: each is made once for a forward."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        """A new forward begins."""
        self._copies.clear()

    def bring(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A tensor on a device."""
        if tensor.device == device:
            return tensor
        key = id(tensor), device
        if key not in self._copies:
            self._copies[key] = tensor, tensor.to(device)  # the tensor is held, so that no other one takes its id
        return self._copies[key][1]


class Mover:
    """Before a module's forward: tensors among its arguments go to its device.

    Args:
        device: of the module.
        moved: of the model.
        is_first: whether a forward begins with this module.
    """

    def __init__(self, device: torch.device, moved: Moved, is_first: bool = False) -> None:
        self.device, self.moved, self.is_first = device, moved, is_first

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.is_first:
            self.moved.clear()
        changed = {name: self._bring(value, name != "hidden_states") for name, value in named.items()}
        return tuple(self._bring(value, False) for value in args), changed

    def _bring(self, value: Any, keep: bool) -> Any:
        """Hidden states are another tensor for every module, so there is no use in keeping copies of them."""
        if isinstance(value, Tensor):
            return self.moved.bring(value, self.device) if keep else value.to(self.device)
        if type(value) in (tuple, list):
            return type(value)(self._bring(each, keep) for each in value)
        return value
