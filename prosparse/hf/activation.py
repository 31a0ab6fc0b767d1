"""Which activation a transformers FFN has, read from its module and from the model's config.

`FATReLU` is the activation that ProSparse models name "fatrelu": x where not x < threshold, else 0. Its threshold is a
number of the config (`hidden_act_param`), which `ACT2FN["fatrelu"]` cannot know, so it is set afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu
from transformers.activations import ReLUSquaredActivation, SiLUActivation

from prosparse.kernels.activation import Activation

from ..errors import ConfigError, UserError

KIND_OF_CLASS: dict[type, str] = {
    nn.ReLU: "relu",
    ReLUSquaredActivation: "relu2",
    nn.SiLU: "silu",
    SiLUActivation: "silu",
}
KIND_OF_FUNCTION: dict[Any, str] = {torch.relu: "relu", relu: "relu", silu: "silu"}


class FATReLU(nn.Module):
    """ReLU with a threshold above 0 (Song et al., "ProSparse", 2024, eq. 3).

    Args:
        threshold: in units of the pre-activation; None until the model sets it from its config, 0 is ReLU.

    Raises:
        UserError: used before a threshold was set.
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        if self.threshold is None:
            raise UserError(
                "fatrelu: no threshold was set; load the model with prosparse.AutoModelForCausalLM or inside "
                "prosparse.patched(), which take it from hidden_act_param of config.json"
            )
        closed = x < self.threshold if self.threshold > 0 else x <= 0
        return torch.where(closed, torch.zeros_like(x), x)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


def threshold_of(config: Any) -> float:
    """hidden_act_param of a config whose hidden_act is fatrelu.

    Raises:
        ConfigError: it is missing or no number of at least 0.
    """
    value = getattr(config, "hidden_act_param", None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(
            f"config: hidden_act_param must be the threshold of fatrelu, a finite number of at least 0, got {value!r}"
        )
    return float(value)


def set_thresholds(model: nn.Module, config: Any) -> None:
    """Give every FATReLU of a model that has none yet the config's threshold."""
    for module in model.modules():
        if isinstance(module, FATReLU) and module.threshold is None:
            module.threshold = threshold_of(config)


def read_activation(act_fn: Any, config: Any) -> Activation | None:
    """The activation that an FFN applies to its gate, or None for one that prosparse does not know (GELU).

    Args:
        act_fn: the FFN's activation, a module or a function.
        config: of the model; asked for the threshold where `act_fn` has none, and for hidden_act where its class is
            not known.
    """
    kind = KIND_OF_FUNCTION.get(act_fn) if callable(act_fn) and not isinstance(act_fn, nn.Module) else None
    kind = kind or KIND_OF_CLASS.get(type(act_fn))
    if kind is not None:
        return Activation(kind)
    if isinstance(act_fn, FATReLU) or getattr(config, "hidden_act", None) == "fatrelu":
        known = getattr(act_fn, "threshold", None)
        threshold = threshold_of(config) if known is None else float(known)
        return Activation("fatrelu", threshold) if threshold else Activation("relu")
    return None
