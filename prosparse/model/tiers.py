"""Which memory each part of a model lies in: one for all, or a fast and a slow one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE, FAST, SLOW = "whole", "fast", "slow"  # names of tiers


@dataclass(frozen=True)
class Tier:
    """A memory, and the device that computes there. Two of them may be on one device."""

    name: str
    device: torch.device

    def bring(self, tensor: Tensor) -> Tensor:
        """The tensor here: itself if it is here already."""
        return tensor.to(self.device)


@dataclass(frozen=True)
class Tiers:
    """A model's.

    Args:
        layers: where each layer's attention, norms and cache are, and its residual goes in and comes out.
        embed, head: of the embedding, and of lm_head with the final norm.
        beside: the second tier of each layer's FFN, None where it has none; `kernels.tally.SHARED_SIZE` are counted of
            one that has.
    """

    layers: tuple[Tier, ...]
    embed: Tier
    head: Tier
    beside: tuple[Tier | None, ...]

    @classmethod
    def one(cls, device: torch.device, layers: int) -> Tiers:
        """All on one device."""
        tier = Tier(WHOLE, device)
        return cls((tier,) * layers, tier, tier, (None,) * layers)

    @property
    def is_one(self) -> bool:
        """Whether all of the model is in one memory."""
        return len(self._all) == 1

    @property
    def devices(self) -> list[torch.device]:
        """Each once, that of the first layer first."""
        return list(dict.fromkeys(tier.device for tier in self._all))

    @property
    def _all(self) -> list[Tier]:
        tiers = (*self.layers, self.head, self.embed, *(tier for tier in self.beside if tier is not None))
        return list(dict.fromkeys(tiers))
