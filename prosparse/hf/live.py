"""accelerate, restore, stats: on a live transformers model, in place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prosparse.kernels.tally import NONZERO, PREDICTED

from .. import machine
from ..errors import UnsupportedError, UserError
from ..hardware import Machine
from ..plan import MODES, Plan
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from .accelerated import Accelerated, install, uninstall
from .divided import ATTRIBUTE, division_of
from .find import Found, Site, down_parameter, find_ffns
from .first import AcceleratedFirst
from .glu import CHILDREN
from .guessing import check_belongs, guess_of, open_predictor
from .packed import PackedGLU, check_can_pack, pack_children, packed_format
from .placing import Wish, divide_model
from .shared import SharedGLU

log = logging.getLogger("prosparse")
Model = TypeVar("Model", bound=nn.Module)


def accelerate(
    model: Model,
    mode: str = "auto",
    weights: str | None = None,
    linears: bool = False,
    predictor: Predictor | str | Path | None = None,
    *,
    budget: int | str | None = None,
    profile: Profile | str | Path | None = None,
    machine: Machine | str | Path | None = None,
    plan: Plan | str | Path | None = None,
    device: str = "auto",
    context: int | None = None,
) -> Model:
    """Run the FFNs of a transformers model on our kernels, in place; `restore` takes it back.

    Steps of 1 to 16 tokens (decoding) skip the neurons that are exactly zero; longer ones (prompts) stay with PyTorch.
    The weights are those of the model, without a second copy. For inference: with autograd the model computes as
    before, so call it through `generate` or under `torch.no_grad()`.

    Args:
        model: any module that holds gated FFNs (Llama, Mistral, Qwen, our MiniCPM, Bamboo, ...), or FFNs of a ReLU
            between two Linears (OPT, Falcon with ReLU), of which the second is run.
        mode: "exact" skips true zeros only; "dense" runs our dense kernels; "predicted" looks only at neurons that a
            predictor names; "auto" is predicted where a predictor is given, exact where the activation makes zeros, and
            else leaves the model as it is, with one log line.
        weights: "int8" or "int4" rounds the weights of gated FFNs, and drops the original ones: `restore` is then
            impossible. Mode auto runs them dense where the activation makes no zeros. None keeps weights as they are.
        linears: round all other Linears as well: attention projections, lm_head, FFNs that are not run.
        predictor: a Predictor of this model or its file; None is, for mode predicted, the `predictor.safetensors` of
            the folder that the model was loaded from. Layers that it leaves out are exact.
        budget: bytes of GPU memory for all that is there, as a number or as in "8GiB": a model on the CPU is divided.
            Attention, norms, lm_head and hot neurons go to the GPU as far as the plan says, cold neurons stay.
        profile, machine, plan: as of `prosparse.load`; a placed plan takes the place of a budget.
        device: "auto" and "cuda" are the GPU; "cpu" tries a budget out within the CPU's memory.
        context: tokens of prompt and text that the budget has room for; None is what the model was made for, at most
            4096.

    Returns:
        the same model.

    Raises:
        UserError: an unknown mode or weight format, exact for an activation that makes no zeros, weights that are not
            finite, or rounded already to another format; no predictor for mode predicted, or one of another model; a
            budget that is too small.
        UnsupportedError: a mode other than auto, and no FFN that prosparse runs in it; a budget for a model that two
            devices do not share.
        MachineError: a budget, and no GPU or not enough memory.
        Any error leaves the model as it was.
    """
    if mode not in ("auto", *MODES):
        raise UserError(f"accelerate: mode is {mode!r}; supported are auto, {', '.join(MODES)}")
    wish = Wish(budget, profile, machine, plan, device, context)
    is_divided = wish.is_one
    if division_of(model) is not None:
        raise UserError("accelerate: the model is divided already; restore it first")
    if is_divided and weights is not None:
        raise UserError("accelerate: a budget keeps weights as they are; leave weights out, or use prosparse.load")
    check_can_pack(model, weights, linears)
    predictor = open_predictor(predictor, model, mode)
    found, asked = find_ffns(model), mode
    if predictor is not None:
        mode = "predicted"
        check_belongs(predictor, model, found.sites)
        own = zip(found.sites, predictor.layers, strict=True)
        found = replace(found, sites=[replace(site, predictor=layer) for site, layer in own])
    if weights is not None:
        found = replace(found, sites=[replace(s, mixin=PackedGLU) if s.has_dense_kernel else s for s in found.sites])
    sites = found.sites if is_divided else choose_sites(type(model).__name__, found, mode)
    undo: list[Callable[[], None]] = []
    try:
        if is_divided:
            undo += [_undoing(site.module) for site in sites]
            for site in sites:
                _take_back(site.module)
            divide_model(model, sites, mode if plan is None else asked, predictor, wish)
            return model
        for site in sites:
            undo += [_undoing(module) for module in (site.module, site.first) if module is not None]
            if weights is not None and site.mixin is PackedGLU:
                undo.append(pack_children(site.module, CHILDREN, weights, transposed=CHILDREN[2]))
            _install(site, _mode_of(site, mode))
        if weights is not None and linears:
            for module in list(model.modules()):
                undo.append(pack_children(module, list(module._modules), weights))
    except BaseException:
        for take_back in reversed(undo):
            take_back()
        raise
    return model


def _mode_of(site: Site, mode: str) -> str:
    if mode in ("auto", "predicted"):
        return "predicted" if site.predictor is not None else "exact" if site.activation.makes_zeros else "dense"
    return mode


def choose_sites(what: str, found: Found, mode: str) -> list[Site]:
    """The FFNs to accelerate, with one log line about them, or why there are none."""
    sites = [
        site
        for site in found.sites
        if (site.has_dense_kernel if mode == "dense" else site.activation.makes_zeros or site.mixin is PackedGLU)
    ]
    dense = [site for site in found.sites if not site.activation.makes_zeros]
    if mode == "exact" and dense:
        raise UserError(
            f"accelerate: mode exact needs an activation that makes exact zeros, but {dense[0].name} of {what} uses "
            f"{dense[0].activation}; use mode auto or dense"
        )
    if sites:
        kinds = ", ".join(sorted({str(site.activation) for site in sites}))
        device = down_parameter(sites[0].module).device
        shown = ", ".join(sorted({_mode_of(site, mode) for site in sites}))
        log.info(
            "accelerate: %d FFNs of %s run %s (%s) on %s", len(sites), what, shown, kinds, machine.kernel_name(device)
        )
        if rest := len(found.sites) - len(sites) + len(found.left):
            log.warning("accelerate: %d FFNs of %s stay as they are; %s", rest, what, _why(found, dense))
        return sites
    why = _why(found, dense)
    if mode != "auto":
        raise UnsupportedError(f"accelerate: {what} has no FFN that prosparse runs; {why}")
    log.warning("accelerate: %s is left as it is; %s", what, why)
    return []


def _why(found: Found, dense: list[Site]) -> str:
    if dense:
        return (
            f"{dense[0].name} uses {dense[0].activation}, which makes no exact zeros, so there is nothing to skip "
            "without changing the result: only ReLU-like models (relu, relu2, fatrelu, dReLU) gain"
        )
    if found.left:
        name, fault = next(iter(found.left.items()))
        return f"{name}: {fault}"
    if found.sites:
        return f"{found.sites[0].name} has no up projection beside it, and for such FFNs there is no dense kernel here"
    return "it has no module with gate_proj, up_proj, down_proj and act_fn, nor a ReLU between fc1 and fc2"


def _install(site: Site, mode: str) -> None:
    guess, down = guess_of(site), down_parameter(site.module)
    if site.first is None:
        install(site.module, down, site.mixin, site.activation, mode, site.dense_class, guess)
        return
    install(site.module, down, site.mixin, site.activation, mode, site.dense_class)
    _take_back(site.first)
    if guess is not None:
        install(site.first, None, AcceleratedFirst, site.activation, mode, type(site.first), guess)


def _undoing(module: nn.Module) -> Callable[[], None]:
    """What puts a module back to its present state, whatever part of `install` was done."""
    if not isinstance(module, Accelerated):
        return lambda: _take_back(module)
    before = module.mixin(), module.activation, module.mode, module.dense_class, module.guess
    return lambda: install(module, _transposed(module), *before)


def _take_back(module: nn.Module) -> None:
    if isinstance(module, Accelerated):
        uninstall(module, _transposed(module))


def _transposed(module: nn.Module) -> nn.Parameter | None:
    """What lies transposed in an accelerated module."""
    return None if isinstance(module, AcceleratedFirst) else down_parameter(module)


def restore(model: Model) -> Model:
    """Undo `accelerate`: the same modules, classes and memory layout as before. A model that is not accelerated stays.

    Returns:
        the same model.
    """
    if (division := division_of(model)) is not None:
        division.take_back()
        del model.__dict__[ATTRIBUTE]
    if any(isinstance(module, SharedGLU) for module in model.modules()):
        raise UserError(f"restore: this {type(model).__name__} is part of a divided one; restore the whole model")
    if fmt := packed_format(model):
        raise UserError(f"restore: the weights were rounded to {fmt} and the others dropped; load the model again")
    for module in list(model.modules()):
        _take_back(module)
    return model


def stats(model: nn.Module, reset: bool = False) -> dict[str, Any]:
    """What an accelerated model did since `accelerate` or the latest reset.

    Args:
        model: it.
        reset: start counting anew.

    Returns:
        `activation_sparsity`: {"mean", "layers"}, the share of act(gate) * up that was exactly zero, over the tokens of
        decode steps (one token for each of at most 16 sequences) that the kernels ran, or None before the first;
        `predicted_sparsity`: {"mean", "layers"}, the share of the neurons that the predictor left out in those steps;
        None for a layer that has none, which the mean leaves out, and None in other modes;
        `decode_tokens`: how many those were; `cold`: of a divided model, as in `engine.stats`, else None; `kernels`:
        which implementation ran. Sequences of a batch that have ended count until the last one has; threads that
        generate at the same time may lose counts.

    Raises:
        UserError: the model is not accelerated.
    """
    counters = [module for module in model.modules() if isinstance(module, Accelerated)]
    layers = [module for module in counters if not isinstance(module, AcceleratedFirst)]
    if not layers:
        raise UserError("stats: the model is not accelerated; call prosparse.accelerate(model) first")
    active = [_left_out(layer, NONZERO, layer.prosparse_tokens) for layer in layers]
    guessing = [layer if layer.guess is not None else _first_of(layer, counters) for layer in layers]
    predicted = [None if own is None else _left_out(own, PREDICTED, own.prosparse_steps) for own in guessing]
    division = division_of(model)
    devices = dict.fromkeys(layer.prosparse_tally.device for layer in layers)
    if division is not None:
        devices |= dict.fromkeys([division.division.fast, division.division.slow])
    result = {
        "activation_sparsity": None if None in active else _mean(active),
        "predicted_sparsity": None if predicted == [None] * len(layers) else _mean(predicted),
        "decode_tokens": max(int(layer.prosparse_tokens) for layer in layers),
        "cold": None if division is None else division.cold(),
        "kernels": " and ".join(dict.fromkeys(map(machine.kernel_name, devices))),
    }
    if reset:
        with torch.inference_mode(False):
            for counter in (buffer for layer in counters for buffer in layer.counters()):
                counter.zero_()
    return result


def _left_out(layer: Accelerated, what: int, of: Tensor) -> float | None:
    """Share of the neurons that a counter did not count, in so many tokens or steps; None before the first."""
    weight = layer.weight if isinstance(layer, AcceleratedFirst) else down_parameter(layer)
    neurons = weight.shape[1 if weight.is_floating_point() and not isinstance(layer, AcceleratedFirst) else 0]
    return round(1 - int(layer.prosparse_tally[what]) / (int(of) * neurons), 6) if int(of) else None


def _first_of(down: Accelerated, counters: list[Accelerated]) -> AcceleratedFirst | None:
    """What guesses for an FFN without up projection: it stands before its down projection."""
    before = counters[max(counters.index(down) - 1, 0)]
    return before if isinstance(before, AcceleratedFirst) else None


def _mean(layers: list[float | None]) -> dict[str, Any]:
    known = [share for share in layers if share is not None]
    return {"mean": round(sum(known) / len(known), 6), "layers": layers}
