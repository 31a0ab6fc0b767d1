"""A predictor inside a live transformers model: that it belongs to it, and what it becomes in a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prosparse.kernels.guess import Guess
from prosparse.kernels.weight import Weight

from ..config import ModelConfig
from ..engine.load import PREDICTOR_FILE
from ..errors import ProsparseError, UnsupportedError, UserError
from ..plan import fingerprint
from ..sparsity import Selector
from ..weights.neuron_profile import content_key
from ..weights.predictor import Predictor
from ..weights.tables import names_of
from .find import Site


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
    what = type(model).__name__
    try:
        config = _architecture(model)
        content = content_key(_norms(config, model))
    except (ProsparseError, AttributeError) as fault:
        raise UnsupportedError(
            f"accelerate: mode predicted needs a whole model that prosparse.load runs, since a predictor names the one "
            f"it was made for; {what} is none: {fault}"
        ) from fault
    if not config.activation.makes_zeros:
        raise UserError(
            f"accelerate: mode predicted needs an activation that makes exact zeros, but {what} uses "
            f"{config.activation}; use mode dense"
        )
    if len(sites) != config.layers or any(site.activation != config.activation for site in sites):
        raise UserError(
            f"accelerate: {what} has {len(sites)} FFNs with {sites[0].activation}, but its config says {config.layers} "
            f"with {config.activation}; a predictor needs the model that it was made for"
        )
    try:
        predictor.check_fits(fingerprint(config), content, config.layers, config.neurons, config.hidden)
    except UserError as fault:
        raise UserError(
            f"{fault} (weights are named by their norms: load the model in the dtype of its folder)"
        ) from fault
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


def folder_of(model: nn.Module) -> Path:
    """The folder that a model was loaded from; where it was none, a path that does not exist."""
    return Path(getattr(getattr(model, "config", None), "_name_or_path", "") or "no folder")


def _architecture(model: nn.Module) -> ModelConfig:
    """The folder's where there is one: what was set on the live config since (token ids) is no other architecture."""
    folder = folder_of(model)
    if (folder / "config.json").is_file():
        return ModelConfig.from_hf(folder)
    config: Any = model.config
    given: dict[str, Any] = config.to_dict()
    ends = [given.get("eos_token_id"), getattr(getattr(model, "generation_config", None), "eos_token_id", None)]
    flat = [token for end in ends if end is not None for token in (end if isinstance(end, list) else [end])]
    return ModelConfig.from_hf(given | ({"eos_token_id": list(dict.fromkeys(flat))} if flat else {}))


def _norms(config: ModelConfig, model: nn.Module) -> list[Tensor]:
    names = names_of(config)
    of_layer = (names.layer.attention_norm, names.layer.ffn_norm)
    wanted = [norm.format(layer) for layer in range(config.layers) for norm in of_layer]
    return [model.get_parameter(name) for name in wanted + [names.final_norm] * config.final_norm]
