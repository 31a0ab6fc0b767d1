"""From a checkpoint to weights in memory, tensor by tensor.

Sources are views of mapped files, so memory holds the result and, where a format or a device changes, about one tensor.
Every block is checked for NaN and infinity while it is still in the processor's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from prosparse.kernels.weight import FORMAT_OF_DTYPE, FORMATS, Weight

from ..config import ModelConfig
from ..errors import MachineError, UserError
from ..machine import available_memory
from .checkpoint import Checkpoint
from .finite import check_finite
from .memory import Arena
from .model_weights import LayerWeights, ModelWeights
from .names import TABLES, Names, bias_of, check_names, expected_shapes

Progress = Callable[[int, int], None]
log = logging.getLogger("prosparse")

# Rows converted at a time. A [4096, 11008] matrix is transposed from the file in 65 ms on one core with 256 rows, in
# 80 ms with 32, in 155 ms when torch transposes and converts it in one go.
BLOCK_ROWS = 256


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    fmt: str = "auto",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ModelWeights:
    """Read a model's weights.

    A checkpoint whose config ties lm_head to the embedding may hold an lm_head all the same: equal ones are tied, a
    different one is used, as transformers 5 does.

    Args:
        checkpoint: of `config`'s model; its files are unmapped at the end.
        fmt: "fp32", "fp16", "bf16", or "auto": the stored format of the FFN, with fp32 turned into bf16.
        device: where the weights go.
        progress: called with (done, total) bytes of weights.

    Raises:
        CheckpointError: the checkpoint does not hold this model, or a weight is NaN or infinite (in `fmt`).
        UserError: `fmt` is no weight format.
        MachineError: not enough memory.
    """
    with checkpoint:
        return _load(checkpoint, config, fmt, torch.device(device), progress)


def _load(
    checkpoint: Checkpoint, config: ModelConfig, fmt: str, device: torch.device, progress: Progress | None
) -> ModelWeights:
    check_names(checkpoint, config)
    names = TABLES[config.family]
    fmt = _choose_format(checkpoint, names, fmt)
    tied = config.tied_embeddings and not _has_own_lm_head(checkpoint, names)
    reader = _Reader(checkpoint, FORMATS[fmt], device, progress)
    shapes = expected_shapes(config)
    count = sum(torch.Size(shape).numel() for name, shape in shapes.items() if len(shape) == 2)
    if config.tied_embeddings and not tied:
        count += config.vocab * config.hidden
    reader.expect(count * FORMATS[fmt].itemsize)
    embed = reader.matrix(names.embed)
    return ModelWeights(
        embed=embed,
        layers=[_layer(reader, names, layer, config) for layer in range(config.layers)],
        final_norm=reader.vector(names.final_norm),
        lm_head=embed if tied else reader.matrix(names.lm_head),
    )


def _choose_format(checkpoint: Checkpoint, names: Names, fmt: str) -> str:
    if fmt != "auto" and fmt not in FORMATS:
        raise UserError(f"load: weights is {fmt!r}; supported are auto, {', '.join(FORMATS)}")
    if fmt != "auto":
        return fmt
    stored = FORMAT_OF_DTYPE[checkpoint.dtype(names.layer.gate.format(0))]
    if stored == "fp32":
        log.info("%s stores fp32; it is loaded as bf16 (--weights fp32 keeps it)", checkpoint.folder)
        return "bf16"
    return stored


def _has_own_lm_head(checkpoint: Checkpoint, names: Names) -> bool:
    if names.lm_head not in checkpoint or torch.equal(checkpoint.read(names.lm_head), checkpoint.read(names.embed)):
        return False
    log.warning("%s ties lm_head to the embedding, but holds a different lm_head; that one is used", checkpoint.folder)
    return True


def _layer(reader: _Reader, names: Names, layer: int, config: ModelConfig) -> LayerWeights:
    n = names.layer
    qkv = [pattern.format(layer) for pattern in (n.q, n.k, n.v)]
    return LayerWeights(
        attention_norm=reader.vector(n.attention_norm.format(layer)),
        qkv=reader.matrix(*qkv),
        qkv_bias=reader.vector(*map(bias_of, qkv)) if config.attention_bias else None,
        o=reader.matrix(n.o.format(layer)),
        ffn_norm=reader.vector(n.ffn_norm.format(layer)),
        gate=reader.matrix(n.gate.format(layer)),
        up=reader.matrix(n.up.format(layer)),
        down=reader.matrix(n.down.format(layer), transpose=True),
    )


class _Reader:
    """Copies tensors of a checkpoint into new ones of one dtype and device."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None
    ) -> None:
        self.checkpoint, self.dtype, self.device, self.progress = checkpoint, dtype, device, progress
        self.done = self.total = 0
        self.empty: Callable[..., Tensor] = torch.empty

    def expect(self, total: int) -> None:
        """Insist that `total` bytes fit into memory, and reserve them on the CPU."""
        self.total = total
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_memory()
        if total > free:
            raise MachineError(
                f"load: the weights of {self.checkpoint.folder} need {total / 2**30:.1f} GiB as "
                f"{FORMAT_OF_DTYPE[self.dtype]}, but {free / 2**30:.1f} GiB of {self.device.type} memory are free; "
                "close other programs or use a smaller model"
            )
        if self.device.type == "cpu":
            self.empty = Arena(total).empty

    def matrix(self, *parts: str, transpose: bool = False) -> Weight:
        """One matrix, or several one below the other; transposed means its columns become rows."""
        rows = sum(self.checkpoint.shape(name)[0] for name in parts)
        columns = self.checkpoint.shape(parts[0])[1]
        codes = self.empty((columns, rows) if transpose else (rows, columns), dtype=self.dtype)
        start = 0
        for name in parts:
            source = self.checkpoint.read(name)
            for block in source.split(BLOCK_ROWS):
                converted = block.to(self.dtype)
                check_finite(self.checkpoint, name, converted)
                if transpose:
                    codes[:, start : start + len(block)].copy_(converted.t())
                else:
                    codes[start : start + len(block)].copy_(converted)
                start += len(block)
        self.done += codes.nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)
        return Weight(codes.to(self.device))

    def vector(self, *parts: str) -> Tensor:
        """Norm weights and biases are always float32: they are few."""
        vectors = [self.checkpoint.read(name).float() for name in parts]
        for name, vector in zip(parts, vectors, strict=True):
            check_finite(self.checkpoint, name, vector)
        # torch.cat copies, so that no view keeps the file mapped
        return torch.cat(vectors).to(self.device)
