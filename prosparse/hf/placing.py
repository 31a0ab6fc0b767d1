"""From a budget to a plan for a live transformers model: what `prosparse.load` does for a folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prosparse.kernels.weight import FLOATS, FORMAT_OF_DTYPE

from ..config import ModelConfig
from ..engine.budget import known_profile, machine_of, plan_within, profile_for
from ..engine.divided import agreed, check_can_be_shared, check_room, divide, fast_device
from ..engine.load import DEFAULT_CONTEXT
from ..engine.memory_limit import grant
from ..engine.profiling import profiled_windows
from ..engine.source import open_source
from ..engine.windows import CALIBRATION
from ..errors import UnsupportedError, UserError
from ..hardware import Machine, parse_size
from ..placement.sizes import Host
from ..plan import Plan, fingerprint
from ..weights import resolve_model
from ..weights.formats import Formats
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from .divided import ATTRIBUTE, LiveDivision
from .find import Site, down_parameter
from .glu import AcceleratedGLU
from .identity import DTYPE_HINT, folder_of, identify

log = logging.getLogger("prosparse")


@dataclass(frozen=True)
class Wish:
    """What a user asks of a divided model; see `accelerate`."""

    budget: int | str | None = None
    profile: Profile | str | Path | None = None
    machine: Machine | str | Path | None = None
    plan: Plan | str | Path | None = None
    device: str = "auto"
    context: int | None = None

    @property
    def is_one(self) -> bool:
        """Whether the model is to be divided.

        Raises:
            UserError: options that belong to a division, and none.
        """
        if self.budget is not None and self.plan is not None:
            raise UserError("accelerate: a plan already has its budget, but another one was given too; pass one")
        if self.budget is not None or self.plan is not None:
            return True
        others = {"profile": self.profile, "machine": self.machine, "context": self.context}
        given = [name for name, value in others.items() if value is not None]
        given += ["device"] if self.device != "auto" else []
        if given:
            raise UserError(f"accelerate: {', '.join(given)} belongs to a budget, and there is none; pass budget too")
        return False


def divide_model(model: nn.Module, sites: list[Site], mode: str, predictor: Predictor | None, wish: Wish) -> None:
    """Lay a model out on two devices.

    Args:
        model: on the CPU, all of it.
        sites: its FFNs, not accelerated.
        mode: as in `accelerate`.
        predictor: of this model, for mode predicted.
        wish: what is asked for.

    Raises:
        UserError: options that do not fit the model or each other, a budget that is too small.
        UnsupportedError: a model that two devices do not share.
        MachineError: no GPU, or not enough memory.
    """
    fast = fast_device(wish.device)
    fmt = _format_of(model, sites)
    config, content = identify(model, sites, "a budget")
    check_can_be_shared(config)
    context = min(config.max_position, DEFAULT_CONTEXT) if wish.context is None else _checked(wish.context, config)
    host = Host(down_parameter(sites[0].module).element_size(), None)
    formats = Formats(fmt, fmt)
    profile: Profile | None
    if wish.plan is None:
        assert wish.budget is not None, "there is a plan or a budget"
        machine, budget = machine_of(wish.machine), parse_size(wish.budget, "budget")
        found = _profile(wish, config, content)
        profile = known = profile_for(found, config, content, lambda: _count(model, sites, config, content))
        plan = plan_within(budget, machine, config, known, content, mode, formats, context, predictor, host)
    else:
        plan, profile = _given(wish, config, content, mode)
        assert plan.placement is not None, "checked"
        _, context = agreed(plan.placement, formats, wish.context)
    assert plan.placement is not None, "what is placed has a placement"
    division = divide(plan, config, profile, fast)
    limit = grant(plan.placement.budget, fast)
    check_room(plan, config, context, predictor, fast, limit, host)
    if predictor is not None:
        own = zip(sites, predictor.layers, strict=True)
        sites = [replace(site, predictor=layer) for site, layer in own]
    model.__dict__[ATTRIBUTE] = LiveDivision(model, sites, config, plan, division, limit)
    log.info("accelerate: %s is divided: %s", type(model).__name__, plan.reason)


def _given(wish: Wish, config: ModelConfig, content: str, mode: str) -> tuple[Plan, Profile | None]:
    """A plan that was made before, and the profile at hand."""
    if mode != "auto":
        raise UserError(
            f"accelerate: a plan already says how each layer runs, but mode {mode!r} was given too; pass one"
        )
    if wish.machine is not None:
        raise UserError("accelerate: a plan is made for its machine, but one was given too; pass one of them")
    plan = wish.plan if isinstance(wish.plan, Plan) else Plan.load(str(wish.plan))
    plan.check_fits(config)
    if plan.placement is None:
        raise UserError("accelerate: the plan is for one device; make one with `prosparse plan`, or pass a budget")
    return plan, _profile(wish, config, content)


def _profile(wish: Wish, config: ModelConfig, content: str) -> Profile | None:
    try:
        return known_profile(wish.profile, config, content)
    except UserError as fault:
        raise UserError(f"{fault} ({DTYPE_HINT})") from fault


def _format_of(model: nn.Module, sites: list[Site]) -> str:
    """The format of a model's weights, which are all of one dtype and on the CPU."""
    if any(type(site.module) is not site.dense_class or site.mixin is not AcceleratedGLU for site in sites):
        raise UnsupportedError("accelerate: two devices share gated FFNs with weights as they are; leave budget out")
    dtypes = set()
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise UserError(
                f"accelerate: {name} is on {parameter.device}; a budget divides a model that is on the CPU: load it "
                'with device_map="cpu"'
            )
        if parameter.is_inference():
            raise UserError(f"accelerate: {name} was made in inference mode; load a model to be divided outside of it")
        dtypes.add(parameter.dtype)
    hooked = next((name for name, module in model.named_modules() if "_hf_hook" in module.__dict__), None)
    if hooked is not None:
        raise UserError(f"accelerate: {hooked} is placed by a device_map; a budget places layers itself: leave it out")
    if len(dtypes) > 1 or not dtypes <= FORMAT_OF_DTYPE.keys():
        held, known = ", ".join(map(str, dtypes)), ", ".join(FLOATS)
        raise UserError(f"accelerate: weights are {held}; a budget needs one of {known} for all of them")
    return FORMAT_OF_DTYPE[dtypes.pop()]


def _checked(context: int, config: ModelConfig) -> int:
    if isinstance(context, bool) or not isinstance(context, int) or context < 2:
        raise UserError(f"accelerate: context must be a whole number of at least 2 tokens, got {context!r}")
    return context


@torch.inference_mode()
def _count(model: nn.Module, sites: list[Site], config: ModelConfig, content: str) -> Profile:
    """A profile of the packaged text, counted as the model reads it."""
    try:
        tokenizer = open_source(resolve_model(str(folder_of(model))), None).tokenizer()
    except UserError as fault:
        raise UserError(
            f"accelerate: there is no profile of this model yet, and none can be made without its tokenizer ({fault}); "
            "pass profile"
        ) from fault
    windows = profiled_windows(tokenizer, config.max_position)
    counts = torch.zeros(config.layers, config.neurons, dtype=torch.int64)
    training = model.training
    model.eval()

    def watch(layer: int) -> Any:
        def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            counts[layer] += (given[0].flatten(0, -2) != 0).sum(0)

        return count

    handles = []
    try:
        for layer, site in enumerate(sites):
            down: Any = site.module.down_proj
            handles.append(down.register_forward_pre_hook(watch(layer)))
        for window in windows:
            model(window[None], use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return Profile(counts, windows.numel(), fingerprint(config), content, CALIBRATION.name)
