"""Which of the models that `prosparse.load` runs a live transformers model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import ProsparseError, UnsupportedError, UserError
from ..weights.neuron_profile import content_key
from ..weights.tables import names_of
from .find import Site

DTYPE_HINT = "weights are named by their norms: load the model in the dtype of its folder"


def identify(model: nn.Module, sites: list[Site], wish: str) -> tuple[ModelConfig, str]:
    """The config of a live model, and the `content_key` of its weights.

    Args:
        model: a whole one.
        sites: its FFNs.
        wish: what needs to know, for messages.

    Raises:
        UnsupportedError: it is none that `prosparse.load` runs.
        UserError: its FFNs are not those that its config says.
    """
    what = type(model).__name__
    try:
        config = _architecture(model)
        content = content_key(_norms(config, model))
    except (ProsparseError, AttributeError) as fault:
        raise UnsupportedError(
            f"accelerate: {wish} needs a whole model that prosparse.load runs, and {what} is none: {fault}"
        ) from fault
    if len(sites) != config.layers or any(site.activation != config.activation for site in sites):
        found = f"{len(sites)} FFNs" + (f" with {sites[0].activation}" if sites else "")
        raise UserError(
            f"accelerate: {what} has {found}, but its config says {config.layers} with {config.activation}; {wish} "
            "needs the model of its config"
        )
    return config, content


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
