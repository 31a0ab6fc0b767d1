"""The calibration pass: some tokens on their way through the layers, as these are made.

It computes what the decoder computes, without rotary embedding: queries and keys are random, and rotating them changes
none of the statistics that are read off here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, rms_norm, scaled_dot_product_attention

from prosparse.kernels.activation import Activation, gate_value, up_value
from prosparse.kernels.weight import Weight

from ...config import ModelConfig

LENGTH = 32  # tokens of a sequence
# Tokens are independent, so 256 know a neuron's mean to a sixteenth of its deviation; small models afford more.
SEQUENCES, SEQUENCES_SMALL, SMALL = 8, 64, 512
GEMM = torch.bfloat16  # twice as fast as float32 on a CPU that has it, and its rounding is far below the deviations


class Stream:
    """The residual of the calibration tokens.

    Args:
        config: sizes and constants.
        residual: what the embedding gives, [tokens(config), hidden] float32; changed in place.
    """

    def __init__(self, config: ModelConfig, residual: Tensor) -> None:
        self.config, self.residual = config, residual

    @staticmethod
    def tokens(config: ModelConfig) -> int:
        """How many tokens calibrate a shape."""
        return LENGTH * (SEQUENCES_SMALL if config.hidden <= SMALL else SEQUENCES)

    def normed(self) -> Tensor:
        """What a block reads, [tokens, hidden] float32; its first coordinate is the constant one."""
        norm = layer_norm if self.config.norm == "layer" else rms_norm
        return norm(self.residual, self.residual.shape[1:], eps=self.config.norm_eps)

    def attend(self, qkv: Weight) -> Tensor:
        """What goes into the output projection, [tokens, heads * head_dim] float32."""
        config, rows = self.config, _gemm(self.normed(), qkv.values(GEMM))
        heads = rows.view(-1, LENGTH, rows.shape[1] // config.head_dim, config.head_dim).transpose(1, 2)
        q, k, v = heads.split([config.heads, config.kv_heads, config.kv_heads], 1)
        group = config.heads // config.kv_heads
        k, v = (kept.repeat_interleave(group, 1) for kept in (k, v))
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        return attended.transpose(1, 2).reshape(rows.shape[0], -1)

    def add(self, values: Tensor, columns: Tensor) -> None:
        """residual + scale * values @ columns, where columns is [values, hidden] in any dtype."""
        self.residual.add_((values.to(GEMM) @ columns.to(GEMM)).float(), alpha=self.config.residual_scale)


def set_bias(x: Tensor, projection: Tensor, rates: Tensor, threshold: float) -> Tensor:
    """Write column 0 of a projection so that its neurons reach a threshold at given rates.

    A neuron's pre-activation is taken for normal over tokens; only its mean and deviation are measured.

    Args:
        x: normed inputs, [tokens, hidden] float32, whose first coordinate is constant up to the norm.
        projection: [neurons, hidden]; its column 0 is replaced.
        rates: [neurons] float64, each between 0 and 1.
        threshold: from which on a neuron counts.

    Returns:
        pre-activations with the bias, [tokens, neurons] float32.
    """
    projection[:, 0] = 0
    g = _gemm(x, projection)
    deviation, mean = torch.std_mean(g, dim=0)
    z = -torch.special.ndtri(rates.to(g.device)).float()
    projection[:, 0] = ((threshold - mean - deviation * z) / x[:, 0].mean()).to(projection.dtype)
    return g.addcmul_(x[:, :1], projection[:, 0].float())


def products(gate: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
    """act(gate) * up of pre-activations, same shape; of an FFN without up act(gate)."""
    value = gate_value(gate, activation.code, activation.threshold)
    return value if up is None else value * up_value(up, activation.on_up)


def _gemm(x: Tensor, matrix: Tensor) -> Tensor:
    return linear(x.to(GEMM), matrix.to(GEMM)).float()
