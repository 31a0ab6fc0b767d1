"""From a checkpoint to weights in memory, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from prosparse.kernels.quant import GROUP
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight

from ..config import ModelConfig
from ..errors import UserError
from .checkpoint import Checkpoint
from .divide import Cut, Division, whole
from .formats import Formats, agree, check_asked, stored_formats
from .memory import Place
from .model_weights import ColdWeights, LayerWeights, ModelWeights
from .names import bias_of, check_names, expected_shapes, format_of
from .pickled import PickledCheckpoint
from .reader import Progress, Reader
from .tables import Names, names_of
from .workers import block_workers

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
    division: Division | None = None,
    instead: str | None = None,
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
        division: of a model with one gated FFN a layer between two devices, in place of `device`.
        instead: what else would fit where memory does not do, for the message.

    Raises:
        CheckpointError: the checkpoint does not hold this model, or a weight is NaN or infinite (in its format).
        UserError: no such weight format, or not one that a converted folder can give; a layout for other models.
        MachineError: not enough memory.
    """
    if layouts is not None and "bundled" in layouts and (config.experts or not config.gated):
        raise UserError("load: layout bundled is for layers of one gated FFN, which this model has not; use rows")
    with checkpoint:
        check_names(checkpoint, config)
        formats = choose_formats(checkpoint, names_of(config), Formats(fmt, lm_head))
        with block_workers() as workers:
            shapes = expected_shapes(config)
            fast = Place(torch.device(device) if division is None else division.fast)
            slow = fast if division is None else Place(division.slow)
            reader = Reader(checkpoint, shapes, fast, workers, progress)
            weights = _load(reader, slow, config, formats, layouts or ["rows"] * config.layers, division, instead)
            reader.finish()
            return weights


def load_layer(checkpoint: Checkpoint | PickledCheckpoint, config: ModelConfig, layer: int) -> ModelWeights:
    """One layer of a model and its ends, on the CPU in fp32; the embedding stays as stored, a view of the file.

    Args:
        checkpoint: of `config`'s model, in float formats.
        layer: its number.
    """
    names, sizes = names_of(config), expected_shapes(config)
    with block_workers() as workers:
        reader = Reader(checkpoint, sizes, Place(torch.device("cpu")), workers, None)
        embed = Weight(checkpoint.read(names.embed))
        own = [_layer(reader, names, layer, config, "fp32", "rows")]
        weights = _with_ends(reader, names, "fp32", embed, embed, own)
        reader.finish()
        return weights


def choose_formats(checkpoint: Checkpoint, names: Names, asked: Formats) -> Formats:
    """What a checkpoint is loaded as. Raises UserError for formats that it cannot be loaded in."""
    check_asked("load", asked)
    formats = agree("load", checkpoint.folder, asked, stored_formats(checkpoint.folder))
    weights = formats.weights
    if weights == "auto":
        weights = FORMAT_OF_DTYPE[checkpoint.dtype(names.layer.gate.format(0, 0))]
        if weights == "fp32":
            log.info("%s stores fp32; it is loaded as bf16 (--weights fp32 keeps it)", checkpoint.folder)
            weights = "bf16"
    return Formats(weights, weights if formats.lm_head == "auto" else formats.lm_head)


def bytes_in_formats(config: ModelConfig, held: str) -> dict[str, int]:
    """Bytes of a model's weights in the formats that might be asked for in place of the one that is held.

    There is none for a packed one: perhaps it is stored so.
    """
    if held in GROUP:
        return {}
    near, names, sizes = (
        whole(torch.device("cpu"), config.layers, config.neurons),
        names_of(config),
        expected_shapes(config),
    )
    kept = [fmt for fmt in ("bf16", *GROUP) if fmt != held]
    return {fmt: sum(near.nbytes(names, sizes, Formats(fmt, fmt), config.tied_embeddings)) for fmt in kept}


def has_own_lm_head(checkpoint: Checkpoint | PickledCheckpoint, names: Names) -> bool:
    """Whether a checkpoint of a tied model holds an lm_head that is not its embedding."""
    if names.lm_head not in checkpoint:
        return False
    embed, lm_head = checkpoint.read(names.embed), checkpoint.read(names.lm_head)
    return embed.dtype != lm_head.dtype or not torch.equal(embed, lm_head)


def _load(
    reader: Reader,
    slow: Place,
    config: ModelConfig,
    formats: Formats,
    layouts: Sequence[str],
    division: Division | None,
    instead: str | None,
) -> ModelWeights:
    checkpoint, names, sizes, fast = reader.checkpoint, names_of(config), reader.sizes, reader.place
    tied = config.tied_embeddings
    if tied and has_own_lm_head(checkpoint, names):
        log.warning(
            "%s ties lm_head to the embedding, but holds a different lm_head; that one is used", checkpoint.folder
        )
        tied, sizes[names.lm_head] = False, sizes[names.embed]
    near = division or whole(fast.device, config.layers, config.neurons)
    wanted = near.nbytes(names, sizes, formats, tied)
    if slow is fast:
        reader.expect({fast: sum(wanted)}, formats.weights, bytes_in_formats(config, formats.weights), instead)
    else:
        reader.expect(dict(zip((fast, slow), wanted, strict=True)), formats.weights)
    head = fast if near.head else slow
    reader.place = head if tied else slow
    embed = reader.matrix(format_of(names.embed, names, formats, tied), names.embed)
    layers = []
    for i, (layout, cut) in enumerate(zip(layouts, near.layers, strict=True)):
        reader.place = fast if cut.attention else slow
        layers.append(_layer(reader, names, i, config, formats.weights, layout, cut, slow))
    reader.place = head
    lm_head = embed if tied else reader.matrix(formats.lm_head, names.lm_head)
    return _with_ends(reader, names, formats.weights, embed, lm_head, layers)


def _with_ends(
    reader: Reader, names: Names, fmt: str, embed: Weight, lm_head: Weight, layers: list[LayerWeights]
) -> ModelWeights:
    project_in, project_out = (
        reader.matrix(fmt, name) if name in reader.sizes else None for name in (names.project_in, names.project_out)
    )
    return ModelWeights(
        embed=embed,
        layers=layers,
        final_norm=_vector(reader, names.final_norm),
        final_norm_bias=_vector(reader, bias_of(names.final_norm)),
        positions=_vector(reader, names.positions),
        project_in=project_in,
        project_out=project_out,
        lm_head=lm_head,
    )


def _layer(
    reader: Reader,
    names: Names,
    layer: int,
    config: ModelConfig,
    fmt: str,
    layout: str,
    cut: Cut | None = None,
    slow: Place | None = None,
) -> LayerWeights:
    n = names.layer
    gates, ups, downs = (
        [pattern.format(layer, expert) for expert in range(config.ffns)] if pattern else []
        for pattern in (n.gate, n.up, n.down)
    )
    qkv = list(dict.fromkeys(pattern.format(layer) for pattern in (n.q, n.k, n.v)))
    order = _split_heads(config) if len(qkv) == 1 else None
    qkv_bias = _vector(reader, *map(bias_of, qkv))
    joined, o = reader.matrix(fmt, *qkv, order=order), reader.matrix(fmt, n.o.format(layer))
    up: Weight | None
    cold = None
    if cut is not None and slow is not None and cut.order is not None:
        gate, up, down, cold = _divided(reader, (gates[0], ups[0], downs[0]), fmt, layout, cut, cut.order, slow)
    else:
        gate, up, down = _undivided(reader, (gates, ups, downs), fmt, layout)
    return LayerWeights(
        attention_norm=reader.vector(n.attention_norm.format(layer)),
        qkv=joined,
        qkv_bias=qkv_bias if qkv_bias is None or order is None else qkv_bias[order],
        o=o,
        ffn_norm=reader.vector(n.ffn_norm.format(layer)),
        gate=gate,
        up=up,
        down=down,
        attention_norm_bias=_vector(reader, bias_of(n.attention_norm.format(layer))),
        o_bias=_vector(reader, bias_of(n.o.format(layer))),
        ffn_norm_bias=_vector(reader, bias_of(n.ffn_norm.format(layer))),
        gate_bias=_vector(reader, bias_of(n.gate.format(layer, 0))),
        down_bias=_vector(reader, bias_of(n.down.format(layer, 0))),
        router=_vector(reader, n.router.format(layer)),
        cold=cold,
    )


def _undivided(
    reader: Reader, names: tuple[list[str], list[str], list[str]], fmt: str, layout: str
) -> tuple[Weight, Weight | None, Weight]:
    """gate, up and down of all FFNs of a layer."""
    gates, ups, downs = names
    gate = reader.matrix(fmt, *gates)
    if layout == "bundled":
        return gate, *reader.bundle(fmt, ups[0], downs[0])
    return gate, reader.matrix(fmt, *ups) if ups else None, reader.matrix(fmt, *downs, transpose=True)


def _divided(
    reader: Reader, names: tuple[str, str, str], fmt: str, layout: str, cut: Cut, order: Tensor, slow: Place
) -> tuple[Weight, Weight, Weight, ColdWeights]:
    """gate, up and down of the first neurons in this order, and those of the others."""
    (gate_name, up_name, down_name), rank = names, order.argsort()
    (gate,), (cold_gate,) = reader.divide(fmt, {gate_name: False}, slow, rank, cut.gate)
    if layout == "bundled":
        (up, down), (cold_up, cold_down) = reader.divide(fmt, {up_name: False, down_name: True}, slow, rank, cut.hot)
    else:
        (up,), (cold_up,) = reader.divide(fmt, {up_name: False}, slow, rank, cut.hot)
        (down,), (cold_down,) = reader.divide(fmt, {down_name: True}, slow, rank, cut.hot)
    return gate, up, down, ColdWeights(cold_gate, cold_up, cold_down)


def _vector(reader: Reader, *names: str) -> Tensor | None:
    """A norm, a bias or a small table; None for what this model has not."""
    return reader.vector(*names) if all(name in reader.sizes for name in names) else None


def _split_heads(config: ModelConfig) -> Tensor:
    """Where q, k and v, one below the other, lie in a matrix that holds them key head by key head: [rows]."""
    group = config.heads // config.kv_heads
    row = torch.arange((config.heads + 2 * config.kv_heads) * config.head_dim)
    fused = row.view(config.kv_heads, group + 2, config.head_dim)
    return torch.cat([fused[:, :group].flatten(), fused[:, group].flatten(), fused[:, group + 1].flatten()])
