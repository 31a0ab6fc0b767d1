"""The border post of GGUF: the keys of a file come in here, and a `ModelConfig` goes on.

No key says what the activation is. llama.cpp computes every llama and MiniCPM model with SiLU, and PowerInfer, whose
files are made from ReLU models only, with ReLU; so they are read here, unless a FATReLU threshold is given.
"""

from __future__ import annotations

import math
from typing import Any

from prosparse.kernels.activation import Activation

from ...config import ModelConfig, RopeConfig
from ...config.fields import Fields, finite, show
from ...errors import CheckpointError, ConfigError, UnsupportedError
from .file import GgufFile

ARCHITECTURES = ("llama", "minicpm")
GPU_INDEX = "generic.gpu_index"
# MiniCPM's constants, for files made before the converter wrote them down; the logits were divided by this last one
EMBEDDING_SCALE, SCALE_DEPTH, DIM_MODEL_BASE = 12.0, 1.4, 256
# Keys that change what a model computes, in ways that prosparse does not
CHANGING = (
    "expert_count", "attention.sliding_window", "attention.scale", "attention.max_alibi_bias", "attention.clamp_kqv",
    "attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual",
)  # fmt: skip


def read_config(file: GgufFile, fatrelu_threshold: float | None = None) -> ModelConfig:
    """The model that the keys of a file describe.

    Args:
        file: its header.
        fatrelu_threshold: the activation is FATReLU with this threshold; 0 is ReLU.

    Raises:
        CheckpointError: a file without a model.
        ConfigError: a key missing or of the wrong type, sizes that do not fit together.
        UnsupportedError: an architecture or a part of one that prosparse does not run.
    """
    keys = Fields(file.metadata, str(file.path))
    arch = _architecture(file, keys)
    hidden, layers = keys.whole(f"{arch}.embedding_length"), keys.whole(f"{arch}.block_count")
    heads = keys.whole(f"{arch}.attention.head_count")
    kv_heads = keys.whole(f"{arch}.attention.head_count_kv", heads)
    head_dim = _head_dim(keys, arch, hidden, heads)
    if heads % kv_heads:
        raise keys.wrong(f"{arch}.attention.head_count_kv", f"a divisor of {arch}.attention.head_count ({heads})")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path}: has no tensor token_embd.weight, so it is no whole model; use one that is")
    vocab = embedding.shape[0]
    activation, notes = _activation(file, fatrelu_threshold)
    scales: dict[str, Any] = {}
    if arch == "minicpm":
        scales, missing = _minicpm_scales(keys, hidden, layers)
        if missing:
            notes += (f"{file.path} has no {', '.join(missing)}; the constants of MiniCPM are used.",)
    bos = keys.token_id("tokenizer.ggml.bos_token_id")
    if bos is not None and bos >= vocab:
        raise keys.wrong("tokenizer.ggml.bos_token_id", f"below the rows of token_embd.weight ({vocab})")
    ends = (keys.token_id(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot"))
    return ModelConfig(
        family=arch,
        hidden=hidden,
        neurons=keys.whole(f"{arch}.feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        max_position=keys.whole(f"{arch}.context_length"),
        norm_eps=keys.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        rope=_rope(keys, arch),
        activation=activation,
        tied_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        bos_token_id=bos,
        eos_token_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        pad_token_id=keys.token_id("tokenizer.ggml.padding_token_id"),
        notes=notes,
        **scales,
    )


def _architecture(file: GgufFile, keys: Fields) -> str:
    arch = keys.text("general.architecture")
    if arch == GPU_INDEX:
        raise CheckpointError(
            f"{file.path}: is PowerInfer's list of GPU neurons, not a model; give the .powerinfer.gguf beside it"
        )
    if arch not in ARCHITECTURES:
        raise UnsupportedError(
            f"{file.path}: general.architecture is {show(arch)}; GGUF files of {' and '.join(ARCHITECTURES)} are read: "
            "use the original model in safetensors"
        )
    parts = keys.whole("split.count", 1, minimum=0)
    if parts > 1:
        raise UnsupportedError(
            f"{file.path}: is one of {parts} parts; files of one part are read: merge them with llama.cpp's "
            "`gguf-split --merge`"
        )
    for key in CHANGING:
        value = file.metadata.get(f"{arch}.{key}")
        if value:
            raise UnsupportedError(
                f"{file.path}: {arch}.{key} is {show(value)}, which prosparse does not compute; use another model"
            )
    return arch


def _head_dim(keys: Fields, arch: str, hidden: int, heads: int) -> int:
    named = f"{arch}.attention.key_length"
    if named not in keys.data and hidden % heads:
        raise keys.wrong(f"{arch}.attention.head_count", f"a divisor of {arch}.embedding_length ({hidden})")
    head_dim = keys.whole(named, hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"{keys.where}: heads must have an even size for rotary embeddings, got {head_dim} ({named})")
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(f"{arch}.{key}", head_dim) != head_dim:
            raise keys.wrong(f"{arch}.{key}", f"{head_dim}, the size of a head: others do not run")
    return head_dim


def _rope(keys: Fields, arch: str) -> RopeConfig:
    theta = keys.number(f"{arch}.rope.freq_base", 10000.0)
    factor = keys.number(f"{arch}.rope.scaling.factor", keys.number(f"{arch}.rope.scale_linear", 1.0))
    kind = keys.text(f"{arch}.rope.scaling.type", "none" if factor == 1 else "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedError(
            f"{keys.where}: {arch}.rope.scaling.type is {show(kind)}; supported are none and linear: use the original "
            "model in safetensors"
        )
    return RopeConfig(theta=theta) if kind == "none" else RopeConfig("linear", theta, factor)


def _minicpm_scales(keys: Fields, hidden: int, layers: int) -> tuple[dict[str, float], list[str]]:
    """Arguments of a ModelConfig, and the keys that were not there. A file has what the logits are divided by."""
    names = [f"minicpm.{key}" for key in ("embedding_scale", "residual_scale", "logit_scale")]
    embedding, residual, logit = names
    scales = {
        "embed_scale": keys.number(embedding, EMBEDDING_SCALE),
        "residual_scale": keys.number(residual, SCALE_DEPTH / math.sqrt(layers)),
        "logit_scale": 1 / keys.number(logit, hidden / DIM_MODEL_BASE),
    }
    return scales, [name for name in names if keys.data.get(name) is None]


def _activation(file: GgufFile, threshold: float | None) -> tuple[Activation, tuple[str, ...]]:
    if threshold is not None:
        number = finite(threshold)
        if number is None or number < 0:
            raise ConfigError(
                f"--fatrelu-threshold must be a finite number of at least 0 (0 is relu), got {show(threshold)}"
            )
        return Activation("fatrelu" if number else "relu", number), ()
    if file.variant == "PowerInfer":
        return Activation("relu"), ()
    return Activation("silu"), (
        "GGUF does not say what the activation is, so it is SiLU, as in llama.cpp, and the model runs dense; for a "
        "ReLU model give --fatrelu-threshold 0, for MiniCPM-S 0.03, for ProSparse-LLaMA-2 0.01.",
    )
