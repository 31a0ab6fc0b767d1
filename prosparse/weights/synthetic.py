"""Weights of a real model's shape, made in memory in seconds, for timing where no checkpoint is at hand.

Matrices are normal, every norm weight is 1. The gate of a neuron is then N(0, 1) for every input of RMSNorm, and
FATReLU with the threshold t closes the share Phi(t) of the neurons:

    activation sparsity = Phi(t),     1 - (1 - Phi(t)) / 2  where up is rectified too (dReLU)

Real: shapes, formats, bytes, memory that is distinct and touched, finite activations through all layers.
Not real: the text that comes out; every neuron is as likely to be active as any other (no hot and no cold ones), and
two tokens share active neurons only by chance, which is the worst case for caches. Every matrix is cut from one block
of random numbers: equal numbers occur in several layers, but hardly ever at the same place of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.weight import FORMATS, Weight

from ..config import ModelConfig
from ..errors import MachineError, UserError
from ..machine import available_memory
from .memory import Arena
from .model_weights import LayerWeights, ModelWeights

Progress = Callable[[int, int], None]

# Prime: wrapped around it, the rows of a matrix that is longer than the block come out shifted, hence different.
BLOCK = 16_777_259  # numbers


def synthetic_weights(
    config: ModelConfig, fmt: str, activation_sparsity: float, seed: int = 0, progress: Progress | None = None
) -> tuple[ModelWeights, ModelConfig]:
    """A model to time.

    Args:
        config: the shape; its activation is replaced by FATReLU, or by ReLU at exactly half.
        fmt: weight format.
        activation_sparsity: share of zeros in act(gate) * up: from 0.5 to below 1, from 0.75 where up is rectified too.
            Below, the threshold would have to be negative, which FATReLU does not allow.
        seed: the same arguments give the same weights.
        progress: called with (done, total) bytes of weights.

    Returns:
        The weights, and the config with the activation that goes with them.

    Raises:
        UserError: a sparsity out of range, or no such format.
        MachineError: not enough memory.
    """
    config = dataclasses.replace(config, activation=_activation(activation_sparsity, config.activation.on_up))
    maker = MatrixMaker(fmt, seed, progress)
    maker.expect(weight_bytes(config, fmt))
    hidden = config.hidden
    # 1 / embed_scale makes the residual start at 1 per channel, and so does every FFN's share of it
    embed = maker.matrix(config.vocab, hidden, 1 / config.embed_scale)
    layers = [_layer(config, maker) for _ in range(config.layers)]
    lm_head = embed if config.tied_embeddings else maker.matrix(config.vocab, hidden, hidden**-0.5)
    return ModelWeights(embed, lm_head, torch.ones(hidden), layers), config


def weight_bytes(config: ModelConfig, fmt: str) -> int:
    """Bytes of the matrices of a shape."""
    per_layer = config.hidden * (config.head_dim * 2 * (config.heads + config.kv_heads) + 3 * config.neurons)
    tables = config.hidden * config.vocab * (1 if config.tied_embeddings else 2)
    return (config.layers * per_layer + tables) * FORMATS[fmt].itemsize


class MatrixMaker:
    """Random matrices, as fast as memory is touched.

    Args:
        fmt: weight format.
        seed: of the block of random numbers and of where matrices are cut from it.
        progress: called with (done, total) bytes.

    Raises:
        UserError: no such format.
    """

    def __init__(self, fmt: str, seed: int = 0, progress: Progress | None = None) -> None:
        if fmt not in FORMATS:
            raise UserError(f"synthetic: weights is {fmt!r}; supported are {', '.join(FORMATS)}")
        self._rng = torch.Generator().manual_seed(seed)
        self._dtype, self._progress = FORMATS[fmt], progress
        self._block = torch.randn(BLOCK, generator=self._rng).to(self._dtype)
        self._done = self._total = 0
        self._empty: Callable[..., Tensor] = torch.empty

    def expect(self, total: int) -> None:
        """Insist that `total` bytes fit into memory, reserve them, and report progress against them."""
        self._total, free = total, available_memory()
        if total * 1.1 > free:  # a tenth for the cache and everything else
            raise MachineError(
                f"synthetic: the weights need {total / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of memory are free; "
                "take a smaller shape"
            )
        self._empty = Arena(total).empty

    def matrix(self, rows: int, columns: int, scale: float) -> Weight:
        """[rows, columns] with normal entries of standard deviation `scale`."""
        codes = self._empty((rows * columns,), dtype=self._dtype)
        start = int(torch.randint(BLOCK, (1,), generator=self._rng))
        done = 0
        while done < codes.numel():
            source = self._block[start : start + codes.numel() - done]
            torch.mul(source, scale, out=codes[done : done + source.numel()])
            done, start = done + source.numel(), 0
        self._done += codes.nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)
        return Weight(codes.view(rows, columns))

    def ffn(self, config: ModelConfig) -> tuple[Weight, Weight, Weight]:
        """gate, up and down of one layer, whose output has about 1 per channel for a normed input."""
        hidden, neurons, activation = config.hidden, config.neurons, config.activation
        t = activation.threshold
        square = t * NormalDist().pdf(t) + 1 - NormalDist().cdf(t)  # mean of act(g)^2
        if activation.on_up:
            square /= 2
        return (
            self.matrix(neurons, hidden, hidden**-0.5),
            self.matrix(neurons, hidden, hidden**-0.5),
            self.matrix(neurons, hidden, (neurons * square) ** -0.5),
        )


def _layer(config: ModelConfig, maker: MatrixMaker) -> LayerWeights:
    hidden, attended = config.hidden, config.heads * config.head_dim
    rows = attended + 2 * config.kv_heads * config.head_dim
    qkv = maker.matrix(rows, hidden, hidden**-0.5)
    o = maker.matrix(hidden, attended, attended**-0.5)
    gate, up, down = maker.ffn(config)
    bias = torch.zeros(rows) if config.attention_bias else None
    return LayerWeights(torch.ones(hidden), qkv, bias, o, torch.ones(hidden), gate, up, down)


def _activation(sparsity: float, on_up: bool) -> Activation:
    least = 0.75 if on_up else 0.5
    if not least <= sparsity < 1:
        why = " because this shape rectifies up as well" if on_up else ""
        raise UserError(f"synthetic: activation sparsity must be from {least} to below 1{why}, got {sparsity}")
    closed = 1 - 2 * (1 - sparsity) if on_up else sparsity
    if closed == 0.5:
        return Activation("relu", on_up=on_up)
    return Activation("fatrelu", NormalDist().inv_cdf(closed), on_up=on_up)
