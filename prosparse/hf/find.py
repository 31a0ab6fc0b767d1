"""Find the FFNs of a transformers model that we run, by structure and by what they compute.

`plain` knows those without up projection. A module is a gated one when it has gate_proj, up_proj, down_proj (Linears
without bias) and act_fn, and when its forward, run on small random weights, gives down(act(gate x) * up x), or
relu(up x) for dReLU. What it computes is tried and not concluded from its name, so a class that only looks like one is
left alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prosparse.kernels.activation import Activation, gate_value, up_value
from prosparse.kernels.weight import FORMAT_OF_DTYPE

from ..weights.predictor import LayerPredictor
from .accelerated import Accelerated
from .activation import read_activation
from .down import AcceleratedDown
from .glu import CHILDREN, AcceleratedGLU, weights_of
from .plain import down_of, examine_plain, first_of

PROBE_SIZES = (64, 16, 24)  # tokens, hidden, neurons: 1536 gates, so a threshold is crossed on both sides
PROBE_TOLERANCE = 1e-4  # relative; the probe runs in float32


@dataclass(frozen=True, eq=False)
class Site:
    """One module that can be accelerated.

    Args:
        name: of the module in the model.
        module: a gated FFN, or the down projection of one without up.
        activation: of the FFN.
        dense_class: the class that it has without us.
        mixin: what runs it.
        first: of an FFN without up, the projection before the activation.
        predictor: of its layer, in mode predicted.
    """

    name: str
    module: nn.Module
    activation: Activation
    dense_class: type[nn.Module]
    mixin: type[Accelerated] = AcceleratedGLU
    first: nn.Linear | None = None
    predictor: LayerPredictor | None = None

    @property
    def has_dense_kernel(self) -> bool:
        """Whether mode dense runs it on a kernel of ours."""
        return issubclass(self.mixin, AcceleratedGLU)


@dataclass(frozen=True, eq=False)
class Found:
    """What a model has.

    Args:
        sites: FFNs, in order.
        left: why a module that looks like an FFN is none for us, by its name.
    """

    sites: list[Site]
    left: dict[str, str]


def down_parameter(module: nn.Module) -> nn.Parameter:
    """The weight of a site's down projection, [hidden, neurons] as transformers has it; or packed, a row per neuron."""
    return cast(Any, module).weight if isinstance(module, nn.Linear) else weights_of(module)[2]


def find_ffns(model: nn.Module) -> Found:
    """The FFNs of a model; nothing is changed."""
    config = getattr(model, "config", None)
    found = Found([], {})
    probed: dict[tuple[type[nn.Module], Activation], Activation | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, AcceleratedGLU):
            if not module.computes_as_found():
                found.left[name] = "its activation was replaced since it was accelerated; restore the model first"
                continue
            found.sites.append(Site(name, module, module.activation, module.dense_class, module.mixin()))
        elif all(hasattr(module, child) for child in (*CHILDREN, "act_fn")):
            site = examine(name, module, config, probed)
            if isinstance(site, Site):
                found.sites.append(site)
            else:
                found.left[name] = site
        elif (child := down_of(module)) is not None:
            _add_plain(found, f"{name}.{child}", module, child, config)
        elif name.rsplit(".", 1)[-1] == "experts" and not isinstance(module, nn.ModuleList):
            found.left[name] = "it holds experts, each of which sees only some of the tokens"
    return found


def _add_plain(found: Found, name: str, module: nn.Module, child: str, config: Any) -> None:
    down, first = getattr(module, child), first_of(module)
    if isinstance(down, AcceleratedDown):
        found.sites.append(Site(name, down, down.activation, down.dense_class, AcceleratedDown, first))
        return
    activation = examine_plain(module, config)
    if isinstance(activation, Activation):
        found.sites.append(Site(name, down, activation, type(down), AcceleratedDown, first))
    else:
        found.left[name] = activation


def examine(
    name: str,
    module: nn.Module,
    config: Any,
    probed: dict[tuple[type[nn.Module], Activation], Activation | None],
) -> Site | str:
    """The site that a module is, or why it is none."""
    if fault := _unfit(module):
        return fault
    activation = read_activation(module.act_fn, config)
    if activation is None:
        return f"its activation {type(module.act_fn).__name__} makes no exact zeros"
    key = type(module), activation
    if key not in probed:
        probed[key] = probe(module, activation)
    computed = probed[key]
    if computed is None:
        return f"{type(module).__name__} does not compute down(act(gate x) * up x)"
    return Site(name, module, computed, type(module))


def _unfit(module: nn.Module) -> str | None:
    if "forward" in module.__dict__ and "_old_forward" not in module.__dict__:
        return "its forward was replaced on the instance"
    projections = [getattr(module, child) for child in CHILDREN]
    for child, projection in zip(CHILDREN, projections, strict=True):
        if type(projection) is not nn.Linear:
            return f"{child} is {type(projection).__name__}, not a plain Linear"
        if projection.bias is not None:
            return f"{child} has a bias"
    gate, up, down = (projection.weight for projection in projections)
    if len({gate.shape, up.shape, down.shape[::-1]}) > 1:
        return f"its shapes {tuple(gate.shape)}, {tuple(up.shape)}, {tuple(down.shape)} do not fit together"
    if len({gate.dtype, up.dtype, down.dtype}) > 1 or gate.dtype not in FORMAT_OF_DTYPE:
        return (
            f"its weights are {gate.dtype}, {up.dtype}, {down.dtype}; one of {', '.join(FORMAT_OF_DTYPE.values())} runs"
        )
    if any(weight.device.type == "meta" for weight in (gate, up, down)):
        return "its weights are offloaded"
    if gate.stride(1) != 1 or up.stride(1) != 1:
        return "gate_proj or up_proj has rows that are not contiguous"
    return None


@torch.inference_mode(False)
@torch.no_grad()
def probe(module: nn.Module, activation: Activation) -> Activation | None:
    """What a module computes: `activation`, the same with ReLU on up as well, or None for something else."""
    tokens, hidden, neurons = PROBE_SIZES
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    x = draw(tokens, hidden)
    gate = draw(neurons, hidden) * (activation.threshold or 1.0) / hidden**0.5  # spread over both sides of a threshold
    up, down = draw(neurons, hidden), draw(hidden, neurons)
    try:
        actual = type(module).forward(_shadow(module, gate, up, down), x)
    except Exception:
        return None  # a forward that cannot be called like this is not the one we know
    if not isinstance(actual, Tensor) or actual.shape != x.shape:
        return None
    for candidate in (activation, dataclasses.replace(activation, on_up=True)):
        value = gate_value(linear(x, gate), candidate.code, candidate.threshold)
        expected = linear(value * up_value(linear(x, up), candidate.on_up), down)
        if float((actual - expected).norm()) <= PROBE_TOLERANCE * float(expected.norm()):
            return candidate
    return None


def _shadow(module: nn.Module, gate: Tensor, up: Tensor, down: Tensor) -> nn.Module:
    """A module of the same class and settings with these weights and without hooks; the original sees nothing of it."""
    shadow = copy.copy(module)
    act_fn = shadow.act_fn
    if isinstance(act_fn, nn.Module):
        act_fn = copy.copy(act_fn)
        act_fn._forward_hooks, act_fn._forward_pre_hooks = OrderedDict(), OrderedDict()
    shadow._modules = dict(module._modules)
    shadow._parameters, shadow._buffers = dict(module._parameters), dict(module._buffers)
    shadow.act_fn = act_fn
    for child, weight in zip(CHILDREN, (gate, up, down), strict=True):
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        projection.weight = nn.Parameter(weight)
        shadow.add_module(child, projection)
    return shadow
