"""Keys and values of every layer, for a fixed number of sequences and a fixed context.

    bytes = 2 * layers * slots * kv_heads * context * head_dim * itemsize

Memory is reserved whole but touched only as far as sequences grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import MachineError
from .tiers import WHOLE, Tier


class KVCache:
    """Static cache: a sequence lives in a slot, its position t at [.., t, :].

    Args:
        config: sizes of the model.
        slots: how many sequences.
        context: positions per sequence, tokens.
        dtype: of keys and values.
        places: the device of all layers, or the tier of each.

    Raises:
        MachineError: the memory cannot be reserved.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        context: int,
        dtype: torch.dtype,
        places: torch.device | Sequence[Tier],
    ) -> None:
        tiers = [Tier(WHOLE, places)] * config.layers if isinstance(places, torch.device) else list(places)
        self.slots, self.context = slots, context
        self.position_bytes = 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize
        self._parts: dict[Tier, tuple[Tensor, Tensor]] = {}
        for tier, layers in Counter(tiers).items():
            shape = (layers, slots, config.kv_heads, context, config.head_dim)
            try:
                keys, values = (torch.empty(shape, dtype=dtype, device=tier.device) for _ in range(2))
            except RuntimeError as error:
                need = 2 * torch.Size(shape).numel() * dtype.itemsize / 1e9
                cuda = tier.device.type == "cuda"
                free = f" ({torch.cuda.mem_get_info(tier.device)[0] / 1e9:.1f} GB are free)" if cuda else ""
                raise MachineError(
                    f"cache: {slots} sequences of {context} tokens need {need:.1f} GB, which {tier.device} cannot "
                    f"give{free}; lower --context or send fewer prompts at once"
                ) from error
            self._parts[tier] = keys, values
        seen: Counter[Tier] = Counter()
        self._at: list[tuple[Tier, int]] = []  # of each layer
        for tier in tiers:
            self._at.append((tier, seen[tier]))
            seen[tier] += 1

    @property
    def keys(self) -> Tensor:
        """Of all layers, where they are in one place: [layers, slots, kv_heads, context, head_dim]."""
        ((keys, _),) = self._parts.values()
        return keys

    @property
    def values(self) -> Tensor:
        """As `keys`."""
        ((_, values),) = self._parts.values()
        return values

    @property
    def positions(self) -> int:
        """Of all sequences together."""
        return self.slots * self.context

    def nbytes(self, tier: Tier) -> int:
        """Of the layers in a tier."""
        return sum(part.nbytes for part in self._parts.get(tier, ()))

    def up_to(self, layer: int, slot: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence's first `end` positions, views of the cache, [kv_heads, end, head_dim]."""
        tier, at = self._at[layer]
        keys, values = self._parts[tier]
        return keys[at, slot, :, :end], values[at, slot, :, :end]

    def of_tier(self, tier: Tier) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers of a tier, [layers, slots, kv_heads, context, head_dim] each."""
        return self._parts[tier]

    def number_in_tier(self, layer: int) -> int:
        """Which layer of its tier one is."""
        return self._at[layer][1]

    def of_layers(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of consecutive layers of one tier, [layers, slots, kv_heads, context, head_dim] each."""
        tier, at = self._at[first]
        keys, values = self._parts[tier]
        return keys[at : at + end - first], values[at : at + end - first]
