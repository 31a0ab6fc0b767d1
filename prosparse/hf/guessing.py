"""A predictor inside a live transformers model: that it belongs to it, and what it becomes in a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prosparse.kernels.guess import Guess
from prosparse.kernels.weight import Weight

from ..engine.load import PREDICTOR_FILE
from ..errors import UnsupportedError, UserError
from ..plan import fingerprint
from ..sparsity import Selector
from ..weights.predictor import Predictor
from .find import Site
from .identity import DTYPE_HINT, folder_of, identify


def open_predictor(given: Predictor | str | Path | None, model: nn.Module, mode: str) -> Predictor | None:
    """What is to guess in this model, or None where no mode wants it.

    Raises:
        UserError: mode predicted and no predictor, or one for another mode.
    """
    if given is not None and mode not in ("auto", "predicted"):
        raise UserError(f"accelerate: a predictor was given, but mode is {mode!r}; use mode predicted or auto")
    if given is None and mode == "predicted":
        given = folder_of(model) / PREDICTOR_FILE
        if not given.is_file():
            raise UserError(
                "accelerate: mode predicted needs a predictor; make one with `prosparse predictor build` and pass it, "
                "or use mode exact"
            )
    return Predictor.load(given) if isinstance(given, str | Path) else given


def check_belongs(predictor: Predictor, model: nn.Module, sites: list[Site]) -> None:
    """Raise UserError unless a predictor was made for this model, whose FFNs are the sites.

    Raises:
        UnsupportedError: it is no model that predictors are made for, or a layer wants what an FFN does not see.
    """
    config, content = identify(model, sites, "mode predicted")
    what = type(model).__name__
    if not config.activation.makes_zeros:
        raise UserError(
            f"accelerate: mode predicted needs an activation that makes exact zeros, but {what} uses "
            f"{config.activation}; use mode dense"
        )
    try:
        predictor.check_fits(fingerprint(config), content, config.layers, config.neurons, config.hidden)
    except UserError as fault:
        raise UserError(f"{fault} ({DTYPE_HINT})") from fault
    for number, layer in enumerate(predictor.layers):
        if layer is not None and layer.un_normed:
            raise UnsupportedError(
                f"accelerate: the predictor of layer {number} reads the residual before the norm, which an FFN of a "
                "transformers model does not see; run it with prosparse.load"
            )


@torch.inference_mode(False)
def guess_of(site: Site) -> Guess | None:
    """What a site's predictor asks, over the gate as it is held: rows of floats, or packed."""
    if site.predictor is None:
        return None
    gate: Any = site.first if site.first is not None else site.module.gate_proj
    held = gate.weight.detach()
    return Selector(site.predictor, Weight(held, None if held.is_floating_point() else gate.in_features)).guess
