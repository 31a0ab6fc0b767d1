"""Families whose FFNs have no up projection, y = down^T act(gate x + bias) + bias: OPT and Falcon.

Keys and defaults are those of transformers' OPTConfig and FalconConfig.
"""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from .fields import Fields
from .rope import RopeConfig, read_rope

OPT_POSITION_OFFSET = 2  # rows of the table before position 0
OPT_NORM_EPS = 1e-5  # PyTorch's default, which no key changes


def read_opt(fields: Fields) -> dict[str, Any]:
    """Arguments of a `ModelConfig` for model_type opt.

    Raises:
        ConfigError: a key missing, of the wrong type or out of range.
        UnsupportedError: norms without weights.
    """
    hidden, heads = fields.whole("hidden_size", 768), fields.whole("num_attention_heads", 12)
    if not fields.boolean("layer_norm_elementwise_affine", True):
        raise UnsupportedError(f"{fields.where}: layer_norm_elementwise_affine is false; only norms with weights run")
    bias, before = fields.boolean("enable_bias", True), fields.boolean("do_layer_norm_before", True)
    width = fields.whole("word_embed_proj_dim", hidden)
    return dict(
        hidden=hidden,
        neurons=fields.whole("ffn_dim", 3072),
        layers=fields.whole("num_hidden_layers", 12),
        heads=heads,
        kv_heads=heads,
        head_dim=_head_dim(fields, hidden, heads),
        max_position=fields.whole("max_position_embeddings", 2048),
        norm_eps=OPT_NORM_EPS,
        rope=RopeConfig("none"),
        attention_bias=bias,
        output_bias=bias,
        ffn_bias=bias,
        gated=False,
        norm="layer",
        block="sequential" if before else "post_norm",
        final_norm=before and not fields.boolean("_remove_final_layer_norm", False),
        position_offset=OPT_POSITION_OFFSET,
        embed_width=None if width == hidden else width,
    )


def read_falcon(fields: Fields) -> dict[str, Any]:
    """Arguments of a `ModelConfig` for model_type falcon: the parallel blocks of 7B, and the new ones of 40B and 180B.

    Raises:
        ConfigError: a key missing, of the wrong type or out of range.
        UnsupportedError: ALiBi, or blocks that are not parallel, as Falcon-RW has them.
    """
    hidden, heads = fields.whole("hidden_size", 4544), fields.whole("num_attention_heads", 71)
    if fields.boolean("alibi", False):
        raise UnsupportedError(f"{fields.where}: alibi is true; Falcon runs with rotary embeddings")
    new = fields.boolean("new_decoder_architecture", False)
    if not (new or fields.boolean("parallel_attn", True)):
        raise UnsupportedError(f"{fields.where}: parallel_attn is false; Falcon runs with parallel blocks")
    kv_heads = heads
    if new:
        kv_heads = fields.whole("num_kv_heads", heads)
    elif fields.boolean("multi_query", True):
        kv_heads = 1
    if heads % kv_heads:
        raise fields.wrong("num_kv_heads", f"a divisor of num_attention_heads ({heads})")
    norms = fields.whole("num_ln_in_parallel_attn", 2 if new else 1)
    if norms not in (1, 2) or (norms == 2 and not new):
        raise fields.wrong("num_ln_in_parallel_attn", "1 or 2 with new_decoder_architecture, else 1")
    bias, max_position = fields.boolean("bias", False), fields.whole("max_position_embeddings", 2048)
    return dict(
        hidden=hidden,
        neurons=fields.whole("ffn_hidden_size", 4 * hidden),
        layers=fields.whole("num_hidden_layers", 32),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(fields, hidden, heads),
        max_position=max_position,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        rope=read_rope(fields, max_position),
        attention_bias=bias,
        output_bias=bias,
        ffn_bias=bias,
        gated=False,
        norm="layer",
        block="parallel",
        shared_norm=norms == 1,
    )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if hidden % heads or hidden // heads % 2:
        raise fields.wrong("num_attention_heads", f"such that hidden_size ({hidden}) / heads is a whole, even number")
    return hidden // heads
