"""From a checkpoint to weights in memory, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from prosparse.kernels.weight import FORMAT_OF_DTYPE, bytes_per_row

from ..config import ModelConfig
from .checkpoint import Checkpoint
from .formats import Formats, agree, check_asked, stored_formats
from .model_weights import LayerWeights, ModelWeights
from .names import TABLES, Names, bias_of, check_names, expected_shapes, format_of, is_down
from .pickled import PickledCheckpoint
from .reader import Progress, Reader, block_workers

log = logging.getLogger("prosparse")


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    fmt: str = "auto",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    lm_head: str = "auto",
    layouts: Sequence[str] | None = None,
) -> ModelWeights:
    """Read a model's weights.

    A checkpoint whose config ties lm_head to the embedding may hold an lm_head all the same: equal ones are tied, a
    different one is used, as transformers 5 does. A table that serves as both has the format of lm_head.

    Args:
        checkpoint: of `config`'s model; its files are unmapped at the end.
        fmt: a weight format, or "auto": the stored one of the FFN, with fp32 turned into bf16.
        device: where the weights go.
        progress: called with (done, total) bytes of weights.
        lm_head: its weight format; "auto" is as stored in a converted folder, else that of the other weights.
        layouts: of each layer, see `kernels.weight.LAYOUTS`; None is rows for all.

    Raises:
        CheckpointError: the checkpoint does not hold this model, or a weight is NaN or infinite (in its format).
        UserError: no such weight format, or not one that a converted folder can give.
        MachineError: not enough memory.
    """
    with checkpoint:
        check_names(checkpoint, config)
        formats = choose_formats(checkpoint, TABLES[config.family], Formats(fmt, lm_head))
        with block_workers() as workers:
            reader = Reader(checkpoint, expected_shapes(config), torch.device(device), workers, progress)
            return _load(reader, config, formats, layouts or ["rows"] * config.layers)


def choose_formats(checkpoint: Checkpoint, names: Names, asked: Formats) -> Formats:
    """What a checkpoint is loaded as. Raises UserError for formats that it cannot be loaded in."""
    check_asked("load", asked)
    formats = agree("load", checkpoint.folder, asked, stored_formats(checkpoint.folder))
    weights = formats.weights
    if weights == "auto":
        weights = FORMAT_OF_DTYPE[checkpoint.dtype(names.layer.gate.format(0))]
        if weights == "fp32":
            log.info("%s stores fp32; it is loaded as bf16 (--weights fp32 keeps it)", checkpoint.folder)
            weights = "bf16"
    return Formats(weights, weights if formats.lm_head == "auto" else formats.lm_head)


def has_own_lm_head(checkpoint: Checkpoint | PickledCheckpoint, names: Names) -> bool:
    """Whether a checkpoint of a tied model holds an lm_head that is not its embedding."""
    if names.lm_head not in checkpoint:
        return False
    embed, lm_head = checkpoint.read(names.embed), checkpoint.read(names.lm_head)
    return embed.dtype != lm_head.dtype or not torch.equal(embed, lm_head)


def _load(reader: Reader, config: ModelConfig, formats: Formats, layouts: Sequence[str]) -> ModelWeights:
    checkpoint, names, sizes = reader.checkpoint, TABLES[config.family], reader.sizes
    tied = config.tied_embeddings
    if tied and has_own_lm_head(checkpoint, names):
        log.warning(
            "%s ties lm_head to the embedding, but holds a different lm_head; that one is used", checkpoint.folder
        )
        tied, sizes[names.lm_head] = False, sizes[names.embed]
    total = 0
    for name, size in sizes.items():
        if len(size) == 2:
            rows, columns = reversed(size) if is_down(names, name) else size
            total += rows * bytes_per_row(format_of(name, names, formats, tied), columns)
    reader.expect(total, formats.weights)
    embed = reader.matrix(format_of(names.embed, names, formats, tied), names.embed)
    return ModelWeights(
        embed=embed,
        layers=[_layer(reader, names, i, config, formats.weights, layout) for i, layout in enumerate(layouts)],
        final_norm=reader.vector(names.final_norm),
        lm_head=embed if tied else reader.matrix(formats.lm_head, names.lm_head),
    )


def _layer(reader: Reader, names: Names, layer: int, config: ModelConfig, fmt: str, layout: str) -> LayerWeights:
    n = names.layer
    qkv = [pattern.format(layer) for pattern in (n.q, n.k, n.v)]
    gate, up, down = (pattern.format(layer) for pattern in (n.gate, n.up, n.down))
    attention_norm, ffn_norm = reader.vector(n.attention_norm.format(layer)), reader.vector(n.ffn_norm.format(layer))
    bias = reader.vector(*map(bias_of, qkv)) if config.attention_bias else None
    joined, o, opening = reader.matrix(fmt, *qkv), reader.matrix(fmt, n.o.format(layer)), reader.matrix(fmt, gate)
    if layout == "bundled":
        pair = reader.bundle(fmt, up, down)
    else:
        pair = reader.matrix(fmt, up), reader.matrix(fmt, down, transpose=True)
    return LayerWeights(attention_norm, joined, bias, o, ffn_norm, opening, *pair)
