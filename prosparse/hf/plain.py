"""Find the FFNs without up projection of a transformers model: a ReLU between two Linears, OPT's and Falcon's.

Only the second Linear changes, and what it does is tried: on random weights it must be x W^T + bias.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from prosparse.kernels.activation import Activation
from prosparse.kernels.weight import FORMAT_OF_DTYPE

from .activation import read_activation

# children of the module that holds an FFN: first projection, activation, down
KINDS = (("fc1", "activation_fn", "fc2"), ("dense_h_to_4h", "act", "dense_4h_to_h"))
PROBE_SIZES = (8, 24, 16)  # tokens, neurons, hidden


def down_of(module: nn.Module) -> str | None:
    """Name of the down projection of an FFN without up that a module holds; None where it holds none."""
    for first, act, down in KINDS:
        if isinstance(getattr(module, first, None), nn.Linear) and callable(getattr(module, act, None)):
            return down if isinstance(getattr(module, down, None), nn.Linear) else None
    return None


def first_of(module: nn.Module) -> nn.Linear:
    """The first projection of the FFN whose down projection is `down_of(module)`."""
    return getattr(module, next(first for first, _, down in KINDS if down == down_of(module)))


def examine_plain(module: nn.Module, config: Any) -> Activation | str:
    """The activation before a module's down projection, or why it is left alone."""
    _, act, child = next(kind for kind in KINDS if kind[2] == down_of(module))
    activation = read_activation(getattr(module, act), config)
    if activation is None or not activation.makes_zeros:
        return f"its activation {type(getattr(module, act)).__name__} makes no exact zeros"
    down: Any = getattr(module, child)
    if "forward" in down.__dict__ and "_old_forward" not in down.__dict__:
        return f"the forward of {child} was replaced on the instance"
    if down.weight.dtype not in FORMAT_OF_DTYPE or not down.weight.dtype.is_floating_point:
        return f"the weight of {child} is {down.weight.dtype}; floats run"
    if down.weight.device.type == "meta":
        return "its weights are offloaded"
    if not _is_linear(down):
        return f"{child}, a {type(down).__name__}, does not compute x W^T + bias"
    return activation


@torch.inference_mode(False)
@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    tokens, neurons, hidden = PROBE_SIZES
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, generator=random) for size in ((tokens, neurons), (hidden, neurons), (hidden,))
    )
    shadow = copy.copy(module)
    shadow._parameters = {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)}
    shadow._buffers, shadow._modules = {}, {}
    try:
        actual = getattr(module, "dense_class", type(module)).forward(shadow, x)
    except Exception:
        return False  # a forward that cannot be called like this is not the one we know
    return isinstance(actual, torch.Tensor) and torch.allclose(actual, linear(x, weight, bias), rtol=1e-4, atol=1e-4)
