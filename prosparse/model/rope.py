"""Angles of the rotary position embedding: position * inverse frequency. `kernels.rotary_store` turns by them.

Tables are made once for the whole context, in fp32 as the models were trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_position: int, context: int) -> Tensor:
    """Frequencies of one head, [head_dim / 2] float32.

    "dynamic" (NTK) depends on how long the sequence gets. Here that is the context asked for, so that what is already
    cached stays right while a sequence grows: up to max_position nothing is scaled, above it every position is.
    """
    theta = rope.theta
    if rope.kind == "dynamic" and context > max_position:
        stretch = rope.factor * context / max_position - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequency, rope)
    return frequency


def _llama3(frequency: Tensor, rope: RopeConfig) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / frequency
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = ((rope.original_max_position / wavelength - rope.low_freq_factor) / span).clamp(0, 1)
    return (1 - keep) * frequency / rope.factor + keep * frequency


class RopeTable:
    """cos and sin of every position of the context, [context, head_dim / 2] float32; of no angle for kind "none"."""

    def __init__(self, rope: RopeConfig, head_dim: int, max_position: int, context: int, device: torch.device) -> None:
        if rope.kind == "none":  # x * 1 - y * 0 has the bits of x
            self.cos = torch.ones(context, head_dim // 2, device=device)
            self.sin = torch.zeros_like(self.cos)
            return
        frequency = inverse_frequencies(rope, head_dim, max_position, context)
        angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency).to(device)
        self.cos, self.sin = angle.cos(), angle.sin()
