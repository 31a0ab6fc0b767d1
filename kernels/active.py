"""The currency between selecting neurons and computing with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ActiveNeurons:
    """The neurons that a step of 1 to 16 tokens needs: the union over its tokens.

    Args:
        index: [capacity] int32, ids of the active neurons in ascending order; entries from `count` on are undefined.
        count: [1] int32, how many there are. It stays on the device, so a captured CUDA graph replays with a new count.
        value: [tokens, capacity] float32, act(gate) of each listed neuron for each token, 0 where it is closed for that
            token; entries from `count` on are undefined. None where only a guess of the set is known.
    """

    index: Tensor
    count: Tensor
    value: Tensor | None = None


def compact(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Index [neurons] and count [1] of the neurons that are chosen, [neurons] bool, without a host sync."""
    neurons = chosen.shape[0]
    slot = torch.where(chosen, chosen.cumsum(0) - 1, neurons)  # the others go to a spare slot behind the list
    ids = torch.arange(neurons, dtype=torch.int32, device=chosen.device)
    index = torch.zeros(neurons + 1, dtype=torch.int32, device=chosen.device).scatter_(0, slot, ids)[:neurons]
    return index.clone(), chosen.sum(dtype=torch.int32).view(1)
