"""From a budget to a plan and the profile it is made with: what is not given is looked for in the cache, then made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from ..config import ModelConfig
from ..hardware import Machine, named_machine, parse_size, show_size, this_machine
from ..placement import place
from ..placement.sizes import ENGINE, Host
from ..plan import Plan, fingerprint
from ..weights import Checkpoint
from ..weights.content import content_of
from ..weights.formats import Formats
from ..weights.load import choose_formats
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from ..weights.tables import names_of
from .divided import check_can_be_shared
from .engine import Engine
from .plan_cache import PlanCache
from .profiling import profile_neurons

log = logging.getLogger("prosparse")


def machine_of(given: Machine | str | Path | None) -> Machine:
    """The machine to plan for: the one described, else this one.

    Raises:
        UserError: no such description.
        MachineError: none is given, and this one has no GPU.
    """
    if given is None:
        return this_machine()
    return given if isinstance(given, Machine) else named_machine(str(given))


def known_profile(given: Profile | str | Path | None, config: ModelConfig, content: str) -> Profile | None:
    """The profile that is given, else the one in the cache; None where there is none.

    Raises:
        UserError: a file that is no profile, or one of another model.
    """
    profile = Profile.load(given) if isinstance(given, str | Path) else given
    profile = profile or PlanCache(fingerprint(config), content).profile()
    if profile is not None:
        profile.check_fits(fingerprint(config), content, config.layers, config.neurons)
    return profile


def profile_for(
    given: Profile | str | Path | None,
    config: ModelConfig,
    content: str,
    count: Callable[[], Profile],
) -> Profile:
    """As `known_profile`; where there is none, one of the packaged text, which is kept.

    Args:
        given, config: as in `known_profile`.
        content: `content_key` of the weights.
        count: makes one, by `profile_neurons`.
    """
    found = known_profile(given, config, content)
    if found is None:
        log.info("no profile of this model yet: its neurons are counted once, on the packaged text")
        found = count()
        PlanCache(fingerprint(config), content).keep_profile(found)
    return found


def plan_for(
    budget: int | str,
    machine: Machine | str | Path | None,
    checkpoint: Checkpoint,
    config: ModelConfig,
    mode: str,
    asked: Formats,
    context: int,
    predictor: Predictor | None,
    profile: Profile | str | Path | None,
    whole: Callable[[Formats], Engine],
) -> tuple[Plan, Profile]:
    """The plan for a budget and the profile it is made with.

    Args:
        budget, machine, mode, profile: as in `load`.
        checkpoint, config: of the model.
        asked: formats.
        context: tokens.
        predictor: for mode predicted.
        whole: loads the model in these formats on the CPU, to make a profile.

    Raises:
        UserError: a budget that is none or too small, or a profile or machine that is none.
        UnsupportedError: FFNs that cannot be shared.
        MachineError: no machine is given, and this one has no GPU.
    """
    check_can_be_shared(config)
    target, nbytes = machine_of(machine), parse_size(budget, "budget")
    formats, content = choose_formats(checkpoint, names_of(config), asked), content_of(checkpoint, config)
    found = profile_for(profile, config, content, lambda: profile_neurons(whole(formats), content))
    return plan_within(nbytes, target, config, found, content, mode, formats, context, predictor), found


def plan_within(
    budget: int,
    machine: Machine,
    config: ModelConfig,
    profile: Profile,
    content: str,
    mode: str,
    formats: Formats,
    context: int,
    predictor: Predictor | None,
    host: Host = ENGINE,
) -> Plan:
    """The plan for a budget, from the cache where the same was asked for before.

    Args:
        budget: bytes of GPU memory.
        machine: to plan for.
        config, profile: of the model.
        content: `content_key` of its weights.
        mode: as in `load`.
        formats: none of them "auto".
        context: tokens.
        predictor: for mode predicted.
        host: who is to run it.

    Raises:
        UserError: a budget that is too small.
    """
    usable = min(budget, machine.gpu_bytes)
    if usable < budget:
        log.warning("of the budget of %s, %s can be had; it is planned for those", show_size(budget), show_size(usable))
    here = dataclasses.replace(machine, gpu_bytes=usable)  # more that is free changes nothing
    asked = (__version__, here.to_json(), budget, profile.key, mode, dataclasses.astuple(formats), context,
             dataclasses.astuple(host))  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked).encode())
    for own in () if predictor is None else predictor.layers:
        digest.update(b"none" if own is None else own.kind.encode() + own.offset.numpy().tobytes())
    key, cache = digest.hexdigest()[:16], PlanCache(fingerprint(config), content)
    plan = cache.plan(key)
    if plan is None:
        plan = place(
            config, profile, machine, budget, mode=mode, weights=formats.weights, lm_head=formats.lm_head,
            context=context, predictor=predictor, host=host,
        )  # fmt: skip
        cache.keep_plan(key, plan)
    return plan
