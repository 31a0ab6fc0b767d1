"""The currency between selecting neurons and computing with them."""

from __future__ import annotations

from dataclasses import dataclass

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
