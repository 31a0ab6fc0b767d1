"""What tensors are called in a checkpoint, and the check that a checkpoint holds exactly the model of its config.

A tensor that is missing, has another shape, or that prosparse does not know is fatal: running without it would compute
something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from prosparse.kernels.quant import row_bytes
from prosparse.kernels.weight import FLOATS, FORMAT_OF_DTYPE, FORMATS

from ..config import ModelConfig
from ..errors import CheckpointError
from .checkpoint import Checkpoint, listed
from .formats import KEY, PACKED, Formats, stored_formats
from .pickled import PickledCheckpoint


@dataclass(frozen=True)
class LayerNames:
    """Tensor names of one layer; {} is the number of the layer. Biases hang on a projection's name."""

    attention_norm: str
    q: str
    k: str
    v: str
    o: str
    ffn_norm: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Names:
    """Tensor names of a family."""

    embed: str
    final_norm: str
    lm_head: str
    layer: LayerNames
    layer_number: re.Pattern[str]
    harmless: re.Pattern[str]


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
TABLES = {"llama": LLAMA, "minicpm": LLAMA, "bamboo": LLAMA}


def bias_of(weight: str) -> str:
    """Name of the bias that belongs to a projection."""
    return weight.removesuffix("weight") + "bias"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor that a checkpoint of this config must hold, as Hugging Face stores it."""
    names = TABLES[config.family]
    hidden, neurons = config.hidden, config.neurons
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {names.embed: (config.vocab, hidden), names.final_norm: (hidden,)}
    if not config.tied_embeddings:
        shapes[names.lm_head] = (config.vocab, hidden)
    for layer in range(config.layers):
        for pattern, shape in (
            (names.layer.attention_norm, (hidden,)),
            (names.layer.q, (q_rows, hidden)),
            (names.layer.k, (kv_rows, hidden)),
            (names.layer.v, (kv_rows, hidden)),
            (names.layer.o, (hidden, q_rows)),
            (names.layer.ffn_norm, (hidden,)),
            (names.layer.gate, (neurons, hidden)),
            (names.layer.up, (neurons, hidden)),
            (names.layer.down, (hidden, neurons)),
        ):
            name = pattern.format(layer)
            shapes[name] = shape
            if config.attention_bias and pattern in (names.layer.q, names.layer.k, names.layer.v):
                shapes[bias_of(name)] = shape[:1]
    return shapes


def is_down(names: Names, name: str) -> bool:
    """Whether a tensor is a down projection, which is read with one neuron per row."""
    return name.endswith(names.layer.down.split("{}")[1])


def format_of(name: str, names: Names, formats: Formats, tied: bool) -> str:
    """The format of a matrix; a table that is embedding and lm_head at once has that of lm_head."""
    return formats.lm_head if name == names.lm_head or (tied and name == names.embed) else formats.weights


def packed_shape(name: str, shape: tuple[int, ...], names: Names, fmt: str) -> tuple[int, int]:
    """The shape of a matrix's packed tensor, from the one that Hugging Face gives the matrix."""
    rows, columns = reversed(shape) if is_down(names, name) else shape
    return rows, row_bytes(fmt, columns)


def check_names(checkpoint: Checkpoint | PickledCheckpoint, config: ModelConfig) -> None:
    """Insist that a checkpoint holds the model of a config: names, shapes and dtypes, from the headers alone.

    lm_head may be there although the embeddings are tied; `load_weights` compares the two.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or neither fp32, fp16 or bf16 nor packed as
            config.json says.
        ConfigError, UnsupportedError: what config.json says of packed tensors cannot be read.
    """
    names, folder = TABLES[config.family], checkpoint.folder
    stored = stored_formats(folder)
    numbers = [int(found[1]) for name in checkpoint.names() if (found := names.layer_number.match(name))]
    layers = max(numbers, default=-1) + 1
    if layers != config.layers:  # before the list of names is made, which a config with 2^31 layers would not survive
        raise CheckpointError(
            f"{folder}: config.json says num_hidden_layers {config.layers}, but the weights have {layers} layers; "
            "they do not belong together: take both from one download"
        )
    expected = expected_shapes(config)
    if missing := [name for name in expected if name not in checkpoint]:
        tie = f"; if it is tied to {names.embed}, set tie_word_embeddings to true" if names.lm_head in missing else ""
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(expected)} tensors are missing: {listed(missing)}; download the folder "
            f"again{tie}"
        )
    known = expected | {names.lm_head: (config.vocab, config.hidden)}
    unknown = [name for name in checkpoint.names() if name not in known and not names.harmless.fullmatch(name)]
    if unknown:
        raise CheckpointError(
            f"{folder}: holds what a {config.family} model does not have: {listed(unknown)}; prosparse would compute "
            "something else than this model: use plain weights, with adapters merged"
        )
    tied = names.lm_head not in checkpoint
    for name, shape in known.items():
        if name not in checkpoint:
            continue
        fmt = "" if stored is None or len(shape) == 1 else format_of(name, names, stored, tied)
        packed = fmt in PACKED
        if packed:
            shape = packed_shape(name, shape, names, fmt)
        check_dtype(name, checkpoint.dtype(name), str(checkpoint.path(name)), fmt if packed else None)
        if checkpoint.shape(name) != shape:
            what = f"config.json makes it {list(shape)}{f' as {fmt}' if packed else ''}"
            raise CheckpointError(
                f"{checkpoint.path(name)}: {name} is {list(checkpoint.shape(name))}, but {what}; they do not belong "
                "together: take both from one download"
            )


def check_dtype(name: str, dtype: torch.dtype, where: str, packed: str | None = None) -> None:
    """Insist that a tensor is stored in fp32, fp16 or bf16, or in the dtype of a packed format."""
    stored = FORMAT_OF_DTYPE.get(dtype, str(dtype).removeprefix("torch."))
    if packed is not None and dtype != FORMATS[packed]:
        raise CheckpointError(
            f"{where}: {name} is {stored}, but {KEY} in config.json makes it {packed}; they do not belong together: "
            "convert the original model again"
        )
    if packed is None and stored not in FLOATS:
        raise CheckpointError(
            f"{where}: {name} is {str(dtype).removeprefix('torch.')}; only {', '.join(FLOATS)} checkpoints are read, "
            f"and packed ones of `prosparse convert`, which have {KEY} in config.json: use the original, unquantised "
            "model"
        )
