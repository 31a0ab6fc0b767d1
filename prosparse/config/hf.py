"""The border post: Hugging Face's spelling of a model comes in here, old and v5, and a `ModelConfig` goes on.

The family is the key model_type or, where that is missing (openbmb/MiniCPM-S-1B-sft), the class in `architectures`.
Keys that name remote code (auto_map) are ignored: nothing from a model folder is ever run. Defaults of missing keys are
those of the original configuration classes. The dtype of a model is that of its tensors, so torch_dtype and dtype are
ignored as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosparse.kernels.activation import Activation

from ..errors import ConfigError, MissingFileError, UnsupportedError
from .fields import Fields, finite, read_json_object, show
from .plain import read_falcon, read_opt
from .rope import read_rope
from .vision import VISION_MODEL, Decoder, read_decoder


@dataclass(frozen=True)
class Family:
    """What differs between the model types: our name for the family, the class, and defaults of its config class."""

    name: str
    architecture: str
    tied: bool = False
    sliding_window: int | None = None
    activation_key: str = "hidden_act"
    activations: tuple[str, ...] = ("relu", "fatrelu", "relu2", "silu", "swish")
    activation: str = "silu"
    bos: int = 1
    eos: int = 2
    pad: int | None = None


PLAIN = ("relu", "fatrelu", "relu2")
FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM"),
    "sparsellama": Family("llama", "SparseLlamaForCausalLM"),
    "minicpm": Family("minicpm", "MiniCPMForCausalLM", tied=True),
    "bamboo": Family("bamboo", "BambooForCausalLM", sliding_window=4096, activations=("relu", "fatrelu")),
    "opt": Family("opt", "OPTForCausalLM", True, None, "activation_function", PLAIN, activation="relu", bos=2, pad=1),
    "falcon": Family("falcon", "FalconForCausalLM", True, None, "activation", PLAIN, activation="gelu", bos=11, eos=11),
}
PLAIN_READERS = {"opt": read_opt, "falcon": read_falcon}
KINDS = {"relu": "relu", "fatrelu": "fatrelu", "relu2": "relu2", "silu": "silu", "swish": "silu"}
MINICPM_SCALES = ("scale_emb", "scale_depth", "dim_model_base")
MINICPM_S_THRESHOLD = 0.03  # hidden_act_param of MiniCPM-S-1B-sft


def read_arguments(source: str | Path | dict, fatrelu_threshold: float | None = None) -> dict[str, Any]:
    """The arguments of a `ModelConfig`; see its `from_hf`."""
    fields, generation = _open(source)
    model_type = _model_type(fields)
    decoder = read_decoder(fields) if model_type == VISION_MODEL else Decoder(model_type)
    model_type = decoder.model_type
    family = FAMILIES[model_type]
    _refuse_what_would_be_ignored(fields, model_type)
    activation, notes = _activation(fields, model_type, fatrelu_threshold)
    notes += decoder.notes
    vocab = fields.whole("vocab_size")
    bos = fields.token_id("bos_token_id", family.bos)
    if bos is not None and bos >= vocab:
        raise fields.wrong("bos_token_id", f"below vocab_size ({vocab})")
    common = dict(
        family=family.name,
        vocab=vocab,
        activation=activation,
        tied_embeddings=fields.boolean("tie_word_embeddings", family.tied),
        bos_token_id=bos,
        eos_token_ids=tuple(dict.fromkeys(_eos(fields, generation, family.eos) + decoder.ends)),
        pad_token_id=fields.token_id("pad_token_id", family.pad),
        attention_bias=decoder.attention_bias,
        tensor_prefix=decoder.tensor_prefix,
        vision_prefixes=decoder.vision_prefixes,
        notes=notes,
    )
    if model_type in PLAIN_READERS:
        return common | PLAIN_READERS[model_type](fields)
    return common | _read_gated(fields, model_type, family, notes)


def _read_gated(fields: Fields, model_type: str, family: Family, notes: tuple[str, ...]) -> dict[str, Any]:
    """What llama, minicpm and bamboo spell alike."""
    hidden, layers = fields.whole("hidden_size"), fields.whole("num_hidden_layers")
    max_position = fields.whole("max_position_embeddings")
    heads, kv_heads, head_dim = _heads(fields, hidden)
    embed_scale = residual_scale = logit_scale = 1.0
    experts = experts_per_token = 0
    if model_type == "minicpm":
        # each key defaults to 1, and the original class divides all the same: logits by hidden / 1
        embed_scale = fields.number("scale_emb", 1.0)
        residual_scale = fields.number("scale_depth", 1.0) / math.sqrt(layers)
        logit_scale = fields.number("dim_model_base", 1.0) / hidden
        if missing := [key for key in MINICPM_SCALES if fields.data.get(key) is None]:
            notes += (f"{fields.where} has no {', '.join(missing)}; MiniCPM's own default of 1 is used.",)
        if experts := fields.whole("num_experts", 0, minimum=0):
            experts_per_token = fields.whole("num_experts_per_tok")
            if experts_per_token > experts:
                raise fields.wrong("num_experts_per_tok", f"at most num_experts ({experts})")
    sliding_window = None
    if family.sliding_window is not None and not fields.is_null("sliding_window"):
        sliding_window = fields.whole("sliding_window", family.sliding_window)
    return dict(
        hidden=hidden,
        neurons=fields.whole("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(fields, max_position),
        embed_scale=embed_scale,
        residual_scale=residual_scale,
        logit_scale=logit_scale,
        sliding_window=sliding_window,
        experts=experts,
        experts_per_token=experts_per_token,
        notes=notes,
    )


def _open(source: str | Path | dict) -> tuple[Fields, Fields | None]:
    """The config, and generation_config.json where the source is a folder that has one."""
    if isinstance(source, dict):
        return Fields(source, "config"), None
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder")
    if not path.is_dir():
        return Fields(read_json_object(path), str(path)), None
    if not (path / "config.json").exists():
        raise MissingFileError(f"{path}: has no config.json, so it is no Hugging Face model folder; {_instead(path)}")
    config = Fields(read_json_object(path / "config.json"), str(path / "config.json"))
    generation = path / "generation_config.json"
    return config, Fields(read_json_object(generation), str(generation)) if generation.exists() else None


def _model_type(fields: Fields) -> str:
    named = fields.text("model_type", "")
    architectures = fields.data.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise fields.wrong("architectures", "a list of class names")
    by_class = {family.architecture: model_type for model_type, family in FAMILIES.items()} | {"MiniCPMV": VISION_MODEL}
    found = named or next((by_class[name] for name in architectures if name in by_class), "")
    if not found and not architectures:
        raise ConfigError(f"{fields.where}: has neither model_type nor architectures; this is no model's config.json")
    if found not in FAMILIES and found != VISION_MODEL:
        key, value = ("model_type", named) if named else ("architectures", architectures)
        raise UnsupportedError(
            f"{fields.where}: {key} is {show(value)}, which prosparse does not run; supported are "
            f"{', '.join([*FAMILIES, VISION_MODEL])} (ReluLLaMA, ProSparse-LLaMA-2, MiniCPM, MiniCPM-S, MiniCPM-MoE, "
            "Bamboo, TurboSparse-Mistral, OPT, Falcon with ReLU, the language side of MiniCPM-V)"
        )
    return found


def _refuse_what_would_be_ignored(fields: Fields, model_type: str) -> None:
    """Keys that change the network in a way that prosparse does not compute."""
    if fields.whole("num_experts", 0, minimum=0) > 0:
        number = f"{fields.where}: num_experts is {fields.data['num_experts']}"
        if model_type != "minicpm":
            raise UnsupportedError(f"{number}; of models with experts only MiniCPM-MoE runs (model_type minicpm)")
        if fields.text("hidden_act", "silu") not in ("silu", "swish"):
            raise UnsupportedError(
                f"{number} and hidden_act {fields.data['hidden_act']!r}; experts run with silu, as in MiniCPM-MoE"
            )
    for key, what in (("attention_bias", "attention projections"), ("mlp_bias", "FFNs")):
        if fields.boolean(key, False):
            raise UnsupportedError(f"{fields.where}: {key} is true; only {what} without biases run")
    if fields.data.get("quantization_config") is not None:
        raise UnsupportedError(
            f"{fields.where}: quantization_config is set; only fp32, fp16 and bf16 weights are read: use the original"
        )


def _heads(fields: Fields, hidden: int) -> tuple[int, int, int]:
    """heads, kv_heads, head_dim."""
    heads = fields.whole("num_attention_heads")
    kv_heads = fields.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if fields.data.get("head_dim") is None and hidden % heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size ({hidden}), or head_dim be given")
    head_dim = fields.whole("head_dim", hidden // heads)
    if head_dim % 2:
        raise ConfigError(
            f"{fields.where}: head_dim must be even for rotary embeddings, got {head_dim}; where the key is "
            "missing it is hidden_size / num_attention_heads"
        )
    return heads, kv_heads, head_dim


def _activation(fields: Fields, model_type: str, threshold: float | None) -> tuple[Activation, tuple[str, ...]]:
    family = FAMILIES[model_type]
    key = family.activation_key
    hidden_act = fields.text(key, family.activation)
    if hidden_act not in family.activations:
        named = repr(hidden_act) if key in fields.data else f"not given, which means {hidden_act!r}"
        advice = (
            f'; if these are the weights of a ReLU model (ReluFalcon), say so with "{key}": "relu"'
            if model_type == "falcon"
            else ""
        )
        raise UnsupportedError(
            f"{fields.where}: {key} is {named}; {model_type} models run with {', '.join(family.activations)}{advice}"
        )
    kind = KINDS[hidden_act]
    if threshold is not None:
        where = "--fatrelu-threshold"
        if (number := finite(threshold)) is None or number < 0:
            raise ConfigError(f"{where} must be a finite number of at least 0 (0 is relu), got {show(threshold)}")
        if kind not in ("relu", "fatrelu"):
            raise ConfigError(
                f"{where} applies to relu and fatrelu models, but {fields.where} has {key} {hidden_act!r}"
            )
        return _fatrelu(number, model_type), ()
    if kind == "fatrelu":
        number = finite(fields.data.get("hidden_act_param"))
        if number is None or number < 0:
            expected = "the threshold of fatrelu, a finite number of at least 0 (or pass --fatrelu-threshold)"
            raise fields.wrong("hidden_act_param", expected)
        return _fatrelu(number, model_type), ()
    if kind == "silu":
        return Activation("silu"), (f"hidden_act {hidden_act} makes no exact zeros, so the model runs dense.",)
    notes: tuple[str, ...] = ()
    if kind == "relu" and model_type == "llama" and any(key in fields.data for key in MINICPM_SCALES):
        notes = (
            "This looks like MiniCPM-S in llama format, whose conversion dropped the original FATReLU threshold: "
            f"--fatrelu-threshold {MINICPM_S_THRESHOLD} restores it.",
        )
    return Activation(kind, on_up=model_type == "bamboo"), notes


def _fatrelu(threshold: float, model_type: str) -> Activation:
    return Activation("fatrelu" if threshold else "relu", threshold, on_up=model_type == "bamboo")


def _instead(path: Path) -> str:
    """What to do about a folder without config.json."""
    if (path / "adapter_config.json").exists():
        return "it is an adapter: merge it into the model it was trained on, and give that folder"
    inside = sorted({found.parent for deep in ("*/", "*/*/") for found in path.glob(deep + "config.json")})
    return f"did you mean {inside[-1]}?" if inside else "give the folder that holds config.json"


def _eos(fields: Fields, generation: Fields | None, default: int) -> tuple[int, ...]:
    """End-of-sequence ids of both files, the config's first; many models list some only in generation_config.json."""
    ids: list[Any] = [*fields.token_ids("eos_token_id", (default,))]
    if generation is not None:
        ids += generation.token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))
