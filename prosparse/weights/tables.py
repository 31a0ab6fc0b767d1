"""What tensors are called in a checkpoint: one table per family."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..config import ModelConfig


@dataclass(frozen=True)
class LayerNames:
    """Tensor names of one layer; {} is the number of the layer, a second {} that of an expert.

    Biases hang on a matrix's name. One name for q, k and v is one matrix that holds all three, key head by key head:
    its queries, its key, its value. The same name for both norms is one norm. "" is what a family does not have.
    """

    attention_norm: str
    q: str
    k: str
    v: str
    o: str
    ffn_norm: str
    gate: str
    up: str
    down: str
    router: str = ""


@dataclass(frozen=True)
class Names:
    """Tensor names of a family."""

    embed: str
    final_norm: str
    lm_head: str
    layer: LayerNames
    layer_number: re.Pattern[str]
    harmless: re.Pattern[str]
    positions: str = ""
    project_in: str = ""
    project_out: str = ""

    @property
    def floats(self) -> tuple[str, ...]:
        """Ends of the names of tables that stay floats in a packed model."""
        return tuple(name.split("{}")[-1] for name in (self.positions, self.layer.router) if name)


LLAMA = Names(
    embed="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    lm_head="lm_head.weight",
    layer=LayerNames(
        attention_norm="model.layers.{}.input_layernorm.weight",
        q="model.layers.{}.self_attn.q_proj.weight",
        k="model.layers.{}.self_attn.k_proj.weight",
        v="model.layers.{}.self_attn.v_proj.weight",
        o="model.layers.{}.self_attn.o_proj.weight",
        ffn_norm="model.layers.{}.post_attention_layernorm.weight",
        gate="model.layers.{}.mlp.gate_proj.weight",
        up="model.layers.{}.mlp.up_proj.weight",
        down="model.layers.{}.mlp.down_proj.weight",
    ),
    layer_number=re.compile(r"model\.layers\.(\d{1,9})\."),
    # tables of the rotary embedding, which old versions of transformers saved and every engine computes itself
    harmless=re.compile(r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)"),
)
_EXPERT = "model.layers.{}.mlp.experts.{}"
EXPERTS = replace(
    LLAMA,
    layer=replace(
        LLAMA.layer,
        gate=f"{_EXPERT}.w1.weight",
        up=f"{_EXPERT}.w3.weight",
        down=f"{_EXPERT}.w2.weight",
        router="model.layers.{}.mlp.gate.weight",
    ),
)
OPT = Names(
    embed="model.decoder.embed_tokens.weight",
    final_norm="model.decoder.final_layer_norm.weight",
    lm_head="lm_head.weight",
    layer=LayerNames(
        attention_norm="model.decoder.layers.{}.self_attn_layer_norm.weight",
        q="model.decoder.layers.{}.self_attn.q_proj.weight",
        k="model.decoder.layers.{}.self_attn.k_proj.weight",
        v="model.decoder.layers.{}.self_attn.v_proj.weight",
        o="model.decoder.layers.{}.self_attn.out_proj.weight",
        ffn_norm="model.decoder.layers.{}.final_layer_norm.weight",
        gate="model.decoder.layers.{}.fc1.weight",
        up="",
        down="model.decoder.layers.{}.fc2.weight",
    ),
    layer_number=re.compile(r"model\.decoder\.layers\.(\d{1,9})\."),
    harmless=re.compile(r"(?!)"),
    positions="model.decoder.embed_positions.weight",
    project_in="model.decoder.project_in.weight",
    project_out="model.decoder.project_out.weight",
)
_FUSED = "transformer.h.{}.self_attention.query_key_value.weight"
FALCON = Names(
    embed="transformer.word_embeddings.weight",
    final_norm="transformer.ln_f.weight",
    lm_head="lm_head.weight",
    layer=LayerNames(
        attention_norm="transformer.h.{}.ln_attn.weight",
        q=_FUSED,
        k=_FUSED,
        v=_FUSED,
        o="transformer.h.{}.self_attention.dense.weight",
        ffn_norm="transformer.h.{}.ln_mlp.weight",
        gate="transformer.h.{}.mlp.dense_h_to_4h.weight",
        up="",
        down="transformer.h.{}.mlp.dense_4h_to_h.weight",
    ),
    layer_number=re.compile(r"transformer\.h\.(\d{1,9})\."),
    harmless=re.compile(r".*\.rotary\.(inv_freq|cos_cached|sin_cached)"),
)
_SHARED = "transformer.h.{}.input_layernorm.weight"
FALCON_SHARED_NORM = replace(FALCON, layer=replace(FALCON.layer, attention_norm=_SHARED, ffn_norm=_SHARED))
TABLES = {"llama": LLAMA, "minicpm": LLAMA, "bamboo": LLAMA, "opt": OPT, "falcon": FALCON}


def names_of(config: ModelConfig) -> Names:
    """The tensor names of a model."""
    if config.experts:
        return EXPERTS
    return FALCON_SHARED_NORM if config.family == "falcon" and config.shared_norm else TABLES[config.family]
