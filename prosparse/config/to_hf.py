"""The way back over the border post: a `ModelConfig` in Hugging Face's spelling, for folders that we write."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from .model import ModelConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "bamboo": "BambooForCausalLM",
    "opt": "OPTForCausalLM",
}


def hf_keys(config: ModelConfig) -> dict[str, Any]:
    """Sizes and constants as the family's config class spells them; token ids and dtype are added by who knows them.

    Raises:
        UnsupportedError: a family or an architecture that is only read.
    """
    usual = (config.experts, config.embed_width, config.tensor_prefix) == (0, None, "")
    plain_opt = config.family == "opt" and config.block == "sequential" and config.attention_bias and config.ffn_bias
    if not usual or config.family not in ARCHITECTURES or (config.family == "opt" and not plain_opt):
        raise UnsupportedError(
            f"config: a {config.family} model like this one is not written; supported are {', '.join(ARCHITECTURES)}, "
            "without experts and vision"
        )
    common = {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if config.family == "opt":
        names = {"ffn_dim": config.neurons, "word_embed_proj_dim": config.hidden, "do_layer_norm_before": True}
        return {**common, **names, "activation_function": config.activation.kind}
    keys = {
        **common,
        "intermediate_size": config.neurons,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "hidden_act": config.activation.kind,
    }
    if config.activation.kind == "fatrelu":
        keys["hidden_act_param"] = config.activation.threshold
    if config.attention_bias:
        keys["attention_bias"] = True
    if config.family == "bamboo":
        keys["sliding_window"] = config.sliding_window
    if config.family == "minicpm":
        keys |= {
            "scale_emb": config.embed_scale,
            "scale_depth": config.residual_scale * config.layers**0.5,
            "dim_model_base": config.logit_scale * config.hidden,
        }
    return keys
