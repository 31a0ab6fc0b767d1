"""What PowerInfer adds to a model: its predictors, in the model's file, and the list of neurons it keeps on the GPU.

A predictor guesses from the residual before the FFN's norm, without biases:

    neuron j may be active where (fc2 . relu(fc1 . residual))[j] >= threshold
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...config.fields import Fields, finite
from ...errors import CheckpointError
from .checkpoint import floats
from .config import GPU_INDEX
from .file import GgufFile, read_gguf
from .names import PREDICTOR

THRESHOLD = "powerinfer.sparse_threshold"


@dataclass(frozen=True, eq=False)
class LayerPredictor:
    """The predictor of one layer.

    Args:
        layer: its number.
        fc1: [rank, hidden] in the dtype of the file, float32 where it is quantised.
        fc2: [neurons, rank], likewise.
    """

    layer: int
    fc1: Tensor
    fc2: Tensor


@dataclass(frozen=True, eq=False)
class GpuIndex:
    """Which neurons PowerInfer put on the GPU.

    Args:
        order: of each layer, [neurons] int64: the neurons on the GPU first, each part ascending.
        on_gpu: of each layer, how many.
        vram_bytes: what the choice was made for; None where the file does not say.
    """

    order: list[Tensor]
    on_gpu: list[int]
    vram_bytes: int | None


def predictor_threshold(file: GgufFile) -> float:
    """The raw output of a predictor from which on a neuron counts as active; 0 where the file names none."""
    value = file.metadata.get(THRESHOLD, 0.0)
    number = finite(value)
    if number is None:
        raise Fields(file.metadata, str(file.path)).wrong(THRESHOLD, "a finite number")
    return number


def read_predictors(path: str | Path) -> Iterator[LayerPredictor]:
    """The predictors of a file's layers in order, one in memory at a time; none where it has none.

    The model need not be one that runs from GGUF: predictors of any architecture are read.

    Raises:
        MissingFileError, CheckpointError, ConfigError, UnsupportedError: the file cannot be read; layers without a
            predictor while others have one; sizes that do not fit the model; weights that are not finite.
    """
    file = read_gguf(path)
    keys = Fields(file.metadata, str(file.path))
    arch = keys.text("general.architecture")
    found = {(int(match[1]), match[2]) for name in file.tensors if (match := PREDICTOR.fullmatch(name))}
    if not found:
        return
    layers = keys.whole(f"{arch}.block_count")
    hidden, neurons = keys.whole(f"{arch}.embedding_length"), keys.whole(f"{arch}.feed_forward_length")
    if len(found) != 2 * layers or max(layer for layer, _ in found) >= layers:
        raise CheckpointError(
            f"{file.path}: has {len(found)} predictor matrices, expected fc1 and fc2 of {layers} layers; download the "
            "file again"
        )
    for layer in range(layers):
        yield _layer_predictor(file, layer, hidden, neurons)


def _layer_predictor(file: GgufFile, layer: int, hidden: int, neurons: int) -> LayerPredictor:
    names = [f"blk.{layer}.fc{i}.weight" for i in (1, 2)]
    first, second = (file.tensors[name] for name in names)
    fits = len(first.shape) == len(second.shape) == 2 and first.shape[0] == second.shape[1]
    if not fits or first.shape[1] != hidden or second.shape[0] != neurons:
        raise CheckpointError(
            f"{file.path}: {names[0]} is {list(first.shape)} and {names[1]} {list(second.shape)}, expected [rank, "
            f"{hidden}] and [{neurons}, rank]; download the file again"
        )
    fc1, fc2 = (floats(file, name) for name in names)
    for name, tensor in zip(names, (fc1, fc2), strict=True):
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file.path}: {name} holds weights that are NaN or infinite; download it again")
    return LayerPredictor(layer, fc1, fc2)


def read_gpu_index(path: str | Path) -> GpuIndex:
    """PowerInfer's `.generated.gpuidx` as orders of neurons.

    Raises:
        MissingFileError, CheckpointError, ConfigError, UnsupportedError: the file cannot be read, is of another kind,
            or its two lists of a layer contradict each other.
    """
    file = read_gguf(path)
    keys = Fields(file.metadata, str(file.path))
    if (arch := keys.text("general.architecture")) != GPU_INDEX:
        raise keys.wrong("general.architecture", f"{GPU_INDEX!r}: this is a model ({arch}), no list of GPU neurons")
    layers = keys.whole(f"{GPU_INDEX}.block_count")
    counted = sum(name.endswith(".gpu_idx") for name in file.tensors)
    if layers != counted:
        raise CheckpointError(f"{file.path}: has lists of {counted} layers, expected {layers}; make it anew")
    order, on_gpu = [], []
    for layer in range(layers):
        chosen, bucket = (_list(file, f"blk.{layer}.{name}") for name in ("gpu_idx", "gpu_bucket"))
        if not bool(((chosen == 0) | (chosen == 1)).all()) or not torch.equal(chosen.nonzero().flatten(), bucket):
            raise CheckpointError(
                f"{file.path}: blk.{layer}.gpu_bucket must list where blk.{layer}.gpu_idx is 1, ascending; make it anew"
            )
        order.append(torch.argsort(chosen, descending=True, stable=True))
        on_gpu.append(bucket.numel())
    capacity = file.metadata.get("split.vram_capacity")
    return GpuIndex(order, on_gpu, capacity if isinstance(capacity, int) else None)


def _list(file: GgufFile, name: str) -> Tensor:
    if name not in file.tensors:
        raise CheckpointError(f"{file.path}: has no tensor {name}; make it anew")
    info = file.tensors[name]
    if info.kind.name != "I32" or len(info.shape) != 1:
        raise CheckpointError(f"{file.path}: {name} is {list(info.shape)} {info.kind.name}, expected a list of I32")
    return floats(file, name).long()
