"""Bamboo for transformers: Mistral with dReLU, relu(gate x) * relu(up x) (Song et al., "Turbo Sparse", 2024, eq. 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralDecoderLayer,
    MistralForCausalLM,
    MistralMLP,
    MistralModel,
)

from .activation import set_thresholds


class BambooConfig(MistralConfig):
    """config.json of Bamboo and TurboSparse-Mistral."""

    model_type = "bamboo"
    hidden_act: str = "relu"
    hidden_act_param: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # it names code of the original folder, which is neither run nor saved
        super().__post_init__(**kwargs)


class BambooMLP(MistralMLP):
    """An FFN whose up projection is rectified as well."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * relu(self.up_proj(x)))


class BambooDecoderLayer(MistralDecoderLayer):
    """Mistral's layer with a `BambooMLP`."""

    def __init__(self, config: BambooConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.mlp = BambooMLP(config)


class BambooModel(MistralModel):
    """Mistral's decoder with Bamboo's layers."""

    config_class = BambooConfig
    _no_split_modules = ["BambooDecoderLayer"]
    _can_record_outputs = {"hidden_states": BambooDecoderLayer, "attentions": MistralAttention}

    def __init__(self, config: BambooConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([BambooDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.post_init()


class BambooForCausalLM(MistralForCausalLM):
    """Bamboo and TurboSparse-Mistral with a language model head."""

    config_class = BambooConfig
    _no_split_modules = ["BambooDecoderLayer"]

    def __init__(self, config: BambooConfig) -> None:
        super().__init__(config)
        self.model = BambooModel(config)
        set_thresholds(self, config)
        self.post_init()
