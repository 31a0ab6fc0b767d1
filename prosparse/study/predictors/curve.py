"""What a margin costs and what it finds, for all margins at once.

A neuron of a token needs the margin m that just predicts it: score + base + m * unit = 0. Three histograms over m, of
active neurons, of their output mass and of all neurons, give recall, missed mass and predicted share at every edge.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, LIMIT = 64, 16  # edges per unit, and how far they go; a unit is a deviation of the guess's error
EDGES = 2 * STEPS * LIMIT + 1  # from -LIMIT to LIMIT
ALWAYS = float("inf")


class Curve:
    """Histograms of one guess of one layer, over tokens shown so far.

    Attributes:
        active, everything: [EDGES + 1] int64; the last counts what no finite margin predicts.
        mass: the same of |h| times the length of the neuron's row of down, float64.
    """

    def __init__(self) -> None:
        self.active = torch.zeros(EDGES + 1, dtype=torch.int64)
        self.everything = torch.zeros_like(self.active)
        self.mass = torch.zeros(EDGES + 1, dtype=torch.float64)

    def add(self, needed: Tensor, active: Tensor, mass: Tensor) -> None:
        """Margins needed, which neurons are active, and their output mass, [tokens, neurons] each."""
        place = (needed.clamp(-LIMIT, LIMIT + 1 / STEPS).nan_to_num(-LIMIT) + LIMIT).mul_(STEPS).ceil_()
        place = place.clamp_(max=EDGES).to(torch.int64)  # an edge predicts what needs at most that much
        self.everything += torch.bincount(place.flatten(), minlength=EDGES + 1).cpu()
        self.active += torch.bincount(place[active], minlength=EDGES + 1).cpu()
        self.mass += torch.bincount(place[active], mass[active].double(), minlength=EDGES + 1).cpu()

    def margin(self, recall: float) -> float:
        """The least margin that finds this share of what is active; infinity where none does, 0 where nothing is."""
        if not int(self.active.sum()):
            return 0.0
        enough = self.active.cumsum(0) >= recall * int(self.active.sum()) - 1e-9
        place = int(enough.int().argmax())
        return ALWAYS if place == EDGES else place / STEPS - LIMIT

    def recall(self, margin: float) -> float:
        """Share of active neurons that are predicted; 1 where nothing is active."""
        return _share(self.active, margin)

    def predicted(self, margin: float) -> float:
        """Share of all neurons that are predicted."""
        return _share(self.everything, margin)

    def missed_mass(self, margin: float) -> float:
        """Share of the output mass that is not predicted."""
        return 1 - _share(self.mass, margin)

    def active_share(self) -> float:
        """Share of all neurons that are active."""
        return int(self.active.sum()) / max(1, int(self.everything.sum()))


def _share(histogram: Tensor, margin: float) -> float:
    total = float(histogram.sum())
    if margin == ALWAYS or not total:
        return 1.0
    return float(histogram[: round((margin + LIMIT) * STEPS) + 1].sum()) / total
