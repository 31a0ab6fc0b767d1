"""MiniCPM for transformers: Llama with three scalings (Hu et al., "MiniCPM", 2024).

embedding * scale_emb        residual + block * scale_depth / sqrt(layers)        lm_head(x / (hidden / dim_model_base))
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
)

from .activation import set_thresholds


class MiniCPMConfig(LlamaConfig):
    """config.json of MiniCPM and MiniCPM-S; the defaults of missing keys are those of the original class."""

    model_type = "minicpm"
    tie_word_embeddings: bool = True
    scale_emb: float | int = 1
    scale_depth: float | int = 1
    dim_model_base: float | int = 1
    hidden_act_param: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # it names code of the original folder, which is neither run nor saved
        super().__post_init__(**kwargs)


class MiniCPMDecoderLayer(LlamaDecoderLayer):
    """Attention and FFN, each scaled before it is added to the residual."""

    def __init__(self, config: MiniCPMConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.residual_scale = config.scale_depth / math.sqrt(config.num_hidden_layers)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """[batch, tokens, hidden] to the same; everything else is passed by name, and goes to the attention."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended * self.residual_scale
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)) * self.residual_scale


class MiniCPMModel(LlamaModel):
    """Embeddings are scaled where they are looked up; embeddings passed in are used as they are."""

    config_class = MiniCPMConfig
    _no_split_modules = ["MiniCPMDecoderLayer"]
    _can_record_outputs = {"hidden_states": MiniCPMDecoderLayer, "attentions": LlamaAttention}

    def __init__(self, config: MiniCPMConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([MiniCPMDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **kwargs: Any) -> Any:
        """As `LlamaModel.forward`."""
        if input_ids is not None and inputs_embeds is None:
            input_ids, inputs_embeds = None, self.embed_tokens(input_ids) * self.config.scale_emb
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)


class ScaledLinear(nn.Linear):
    """A Linear that divides its input; its weight may be tied to the embedding."""

    def __init__(self, columns: int, rows: int, divisor: float) -> None:
        super().__init__(columns, rows, bias=False)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.divisor)


class MiniCPMForCausalLM(LlamaForCausalLM):
    """MiniCPM and MiniCPM-S with a language model head."""

    config_class = MiniCPMConfig
    _no_split_modules = ["MiniCPMDecoderLayer"]

    def __init__(self, config: MiniCPMConfig) -> None:
        super().__init__(config)
        self.model = MiniCPMModel(config)
        self.lm_head = ScaledLinear(config.hidden_size, config.vocab_size, config.hidden_size / config.dim_model_base)
        set_thresholds(self, config)
        self.post_init()
