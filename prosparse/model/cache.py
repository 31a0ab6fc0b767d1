"""Keys and values of every layer, for a fixed number of sequences and a fixed context.

    bytes = 2 * layers * slots * kv_heads * context * head_dim * itemsize

Memory is reserved whole but touched only as far as sequences grow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import MachineError


class KVCache:
    """Static cache: a sequence lives in a slot, its position t at [.., t, :].

    Args:
        config: sizes of the model.
        slots: how many sequences.
        context: positions per sequence, tokens.
        dtype: of keys and values.
        device: where.

    Raises:
        MachineError: the memory cannot be reserved.
    """

    def __init__(self, config: ModelConfig, slots: int, context: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, slots, config.kv_heads, context, config.head_dim)
        try:
            self.keys = torch.empty(shape, dtype=dtype, device=device)
            self.values = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            need = 2 * torch.Size(shape).numel() * dtype.itemsize / 1e9
            raise MachineError(
                f"cache: {slots} sequences of {context} tokens need {need:.1f} GB, which {device} cannot give; "
                "lower --context or send fewer prompts at once"
            ) from error
        self.slots, self.context = slots, context

    def up_to(self, layer: int, slot: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence's first `end` positions, views of the cache, [kv_heads, end, head_dim]."""
        return self.keys[layer, slot, :, :end], self.values[layer, slot, :, :end]
