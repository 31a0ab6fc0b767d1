"""The models that prosparse is made for, by name: real sizes without weights, for benchmarks, synthesis and tests."""

from __future__ import annotations

import math

from prosparse.kernels.activation import Activation

from ..errors import UserError
from .model import ModelConfig, RopeConfig


def _llama_2(
    hidden: int, neurons: int, layers: int, heads: int, kv_heads: int, activation: Activation, max_position: int = 4096,
    pad: int | None = 0,
) -> ModelConfig:  # fmt: skip
    return ModelConfig(
        family="llama", hidden=hidden, neurons=neurons, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=128,
        vocab=32000, max_position=max_position, norm_eps=1e-5, rope=RopeConfig(), activation=activation,
        bos_token_id=1, eos_token_ids=(2,), pad_token_id=pad,
    )  # fmt: skip


def _bamboo(vocab: int) -> ModelConfig:
    return ModelConfig(
        family="bamboo", hidden=4096, neurons=14336, layers=32, heads=32, kv_heads=8, head_dim=128, vocab=vocab,
        max_position=32768, norm_eps=1e-5, rope=RopeConfig(), activation=Activation("relu", on_up=True),
        sliding_window=4096, bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip


def _opt(hidden: int, layers: int, heads: int, vocab: int = 50272, max_position: int = 2048) -> ModelConfig:
    return ModelConfig(
        family="opt", hidden=hidden, neurons=4 * hidden, layers=layers, heads=heads, kv_heads=heads,
        head_dim=hidden // heads, vocab=vocab, max_position=max_position, norm_eps=1e-5, rope=RopeConfig("none"),
        activation=Activation("relu"), tied_embeddings=True, attention_bias=True, output_bias=True, ffn_bias=True,
        gated=False, norm="layer", position_offset=2, bos_token_id=2, eos_token_ids=(2,), pad_token_id=1,
    )  # fmt: skip


_RELU, _PROSPARSE = Activation("relu"), Activation("fatrelu", 0.01)

SHAPES = {
    "minicpm-s-1b": ModelConfig(
        family="minicpm", hidden=1536, neurons=3840, layers=52, heads=24, kv_heads=8, head_dim=64, vocab=73440,
        max_position=4096, norm_eps=1e-5, rope=RopeConfig(), activation=Activation("fatrelu", 0.03),
        tied_embeddings=True, embed_scale=12.0, residual_scale=1.4 / math.sqrt(52), logit_scale=256 / 1536,
        bos_token_id=1, eos_token_ids=(2,),
    ),
    "prosparse-llama-2-7b": _llama_2(4096, 11008, 32, 32, 32, _PROSPARSE, pad=None),
    "prosparse-llama-2-13b": _llama_2(5120, 13824, 40, 40, 40, _PROSPARSE),
    "relullama-7b": _llama_2(4096, 11008, 32, 32, 32, _RELU, max_position=2048),
    "relullama-13b": _llama_2(5120, 13824, 40, 40, 40, _RELU, max_position=2048),
    "relullama-70b": _llama_2(8192, 28672, 80, 64, 8, _RELU, max_position=2048),
    "bamboo-7b": _bamboo(vocab=32000),
    "turbosparse-mistral-7b": _bamboo(vocab=32064),
    "opt-6.7b": _opt(hidden=4096, layers=32, heads=32),
    "tiny": ModelConfig(
        family="llama", hidden=64, neurons=192, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=256,
        max_position=256, norm_eps=1e-5, rope=RopeConfig(), activation=_RELU, tied_embeddings=True,
        bos_token_id=1, eos_token_ids=(2,),
    ),
    "tiny-opt": _opt(hidden=64, layers=2, heads=4, vocab=256, max_position=256),
}  # fmt: skip


def shape(name: str) -> ModelConfig:
    """The sizes of a model by its name.

    Raises:
        UserError: no shape of that name; the message lists them.
    """
    if name not in SHAPES:
        raise UserError(f"shape: {name!r} is not known; there are {', '.join(SHAPES)}")
    return SHAPES[name]
