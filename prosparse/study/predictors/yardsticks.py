"""What a selector is measured against: the active set itself, chance, the token before, and the hottest neurons.

    oracle     the active neurons
    random     each neuron with one probability
    previous   the active neurons of the token before; all neurons for the first
    hot        the neurons that are active most often on the calibration text

A yardstick takes (layer, which neurons are active [tokens, neurons] bool) and returns which it names, of that shape.
None of them needs a model, so recordings are judged with them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Yardstick = Callable[[int, Tensor], Tensor]


def oracle(layer: int, active: Tensor) -> Tensor:
    return active


def previous(layer: int, active: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(active[:1]), active[:-1]])


def at_random(share: float, seed: int = 0) -> Yardstick:
    """Each neuron with probability `share`."""
    rng = torch.Generator().manual_seed(seed)

    def name(layer: int, active: Tensor) -> Tensor:
        return (torch.rand(active.shape, generator=rng) < share).to(active.device)

    return name


def hottest(counts: Sequence[Tensor], recall: float) -> Yardstick:
    """The fewest neurons of each layer that make this share of its activations, from counts [neurons] per layer."""
    sets = []
    for own in counts:
        order = own.argsort(descending=True, stable=True)
        reached = own[order].cumsum(0) >= recall * int(own.sum()) - 1e-9
        taken = torch.zeros(own.shape, dtype=torch.bool)
        taken[order[: int(reached.int().argmax()) + 1]] = True
        sets.append(taken & (own > 0))

    def name(layer: int, active: Tensor) -> Tensor:
        return sets[layer].to(active.device).expand_as(active)

    return name
