"""Which tensors a model of some config has, and the check that a checkpoint holds exactly the model of its config.

A tensor that is missing, has another shape, or that prosparse does not know is fatal: running without it would compute
something else.
"""

from __future__ import annotations

import torch

from prosparse.kernels.quant import row_bytes
from prosparse.kernels.weight import FLOATS, FORMAT_OF_DTYPE, FORMATS

from ..config import ModelConfig
from ..errors import CheckpointError
from .checkpoint import Checkpoint, listed
from .formats import KEY, PACKED, Formats, stored_formats
from .pickled import PickledCheckpoint
from .tables import LayerNames, Names, names_of


def bias_of(weight: str) -> str:
    """Name of the bias that belongs to a projection."""
    return weight.removesuffix("weight") + "bias"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor that a checkpoint of this config must hold, as Hugging Face stores it."""
    names, hidden, width = names_of(config), config.hidden, config.embed_width or config.hidden
    shapes: dict[str, tuple[int, ...]] = {names.embed: (config.vocab, width)}
    if config.position_offset is not None:
        shapes[names.positions] = (config.max_position + config.position_offset, hidden)
    if config.embed_width is not None:
        shapes |= {names.project_in: (hidden, width), names.project_out: (width, hidden)}
    if config.final_norm:
        shapes[names.final_norm] = (hidden,)
        if config.norm == "layer":
            shapes[bias_of(names.final_norm)] = (hidden,)
    if not config.tied_embeddings:
        shapes[names.lm_head] = (config.vocab, width)
    of_layer = layer_shapes(config, names.layer)
    for layer in range(config.layers):
        for pattern, shape in of_layer.items():
            for expert in range(config.ffns if pattern.count("{}") == 2 else 1):
                shapes[pattern.format(layer, expert)] = shape
    return shapes


def layer_shapes(config: ModelConfig, n: LayerNames) -> dict[str, tuple[int, ...]]:
    """{name with its {}: shape} of what a layer holds, an expert standing for all."""
    hidden, neurons = config.hidden, config.neurons
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    fused = n.q == n.k
    matrices: dict[str, tuple[tuple[int, ...], bool]] = {  # shape, has a bias
        n.attention_norm: ((hidden,), config.norm == "layer"),
        n.q: ((q_rows + 2 * kv_rows if fused else q_rows, hidden), config.attention_bias),
        **({} if fused else dict.fromkeys((n.k, n.v), ((kv_rows, hidden), config.attention_bias))),
        n.o: ((hidden, q_rows), config.output_bias),
        n.ffn_norm: ((hidden,), config.norm == "layer"),
        n.gate: ((neurons, hidden), config.ffn_bias),
        n.up: ((neurons, hidden), config.ffn_bias),
        n.down: ((hidden, neurons), config.ffn_bias),
        n.router: ((config.experts, hidden), False),
    }
    shapes = {}
    for name, (shape, has_bias) in matrices.items():
        if name:
            shapes[name] = shape
            if has_bias:
                shapes[bias_of(name)] = shape[:1]
    return shapes


def is_matrix(names: Names, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is held in a weight format; norms, biases and `Names.floats` are not."""
    return len(shape) == 2 and not name.endswith(names.floats)


def is_down(names: Names, name: str) -> bool:
    """Whether a tensor is a down projection, which is read with one neuron per row."""
    return name.endswith(names.layer.down.split("{}")[-1])


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
    names, folder = names_of(config), checkpoint.folder
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
            f"{folder}: {len(missing)} of {len(expected)} tensors are missing: "
            f"{listed([config.tensor_prefix + name for name in missing])}; download the folder again{tie}"
        )
    known = expected | {names.lm_head: expected[names.embed]}
    unknown = [name for name in checkpoint.names() if name not in known and not names.harmless.fullmatch(name)]
    if unknown:
        raise CheckpointError(
            f"{folder}: holds what a {config.family} model does not have: "
            f"{listed([checkpoint.stored_name(name) for name in unknown])}; prosparse would compute "
            "something else than this model: use plain weights, with adapters merged"
        )
    tied = names.lm_head not in checkpoint
    for name, shape in known.items():
        if name not in checkpoint:
            continue
        fmt = format_of(name, names, stored, tied) if stored and is_matrix(names, name, shape) else ""
        packed = fmt in PACKED
        if packed:
            shape = packed_shape(name, shape, names, fmt)
        check_dtype(name, checkpoint.dtype(name), str(checkpoint.path(name)), fmt if packed else None)
        if checkpoint.shape(name) != shape:
            what = f"config.json makes it {list(shape)}{f' as {fmt}' if packed else ''}"
            where = f"{checkpoint.path(name)}: {checkpoint.stored_name(name)}"
            raise CheckpointError(
                f"{where} is {list(checkpoint.shape(name))}, but {what}; they do not belong "
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
