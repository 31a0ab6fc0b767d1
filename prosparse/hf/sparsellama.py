"""SparseLlama for transformers: Llama with FATReLU, as in ProSparse-LLaMA-2."""

from __future__ import annotations

from typing import Any

from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from .activation import set_thresholds


class SparseLlamaConfig(LlamaConfig):
    """config.json of ProSparse-LLaMA-2."""

    model_type = "sparsellama"
    hidden_act_param: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # it names code of the original folder, which is neither run nor saved
        super().__post_init__(**kwargs)


class SparseLlamaForCausalLM(LlamaForCausalLM):
    """ProSparse-LLaMA-2 with a language model head."""

    config_class = SparseLlamaConfig

    def __init__(self, config: SparseLlamaConfig) -> None:
        super().__init__(config)
        set_thresholds(self, config)
