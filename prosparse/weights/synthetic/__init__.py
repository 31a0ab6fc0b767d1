"""Weights of a real model's shape whose neurons are as active, as skewed, as predictable and as steady as asked.

Every embedding has the same number in coordinate 0, and no block adds to it. Column 0 of a gate is therefore a bias per
neuron, and decides how often the neuron is active. `docs/synthetic.md` explains the four knobs and what is real.
"""

from .folder import write_synthetic
from .knobs import Activity, Knobs, settle
from .matrices import MatrixMaker, weight_bytes
from .model import PlantedBases, synthetic_weights
from .text import walk

__all__ = [
    "Activity",
    "Knobs",
    "MatrixMaker",
    "PlantedBases",
    "settle",
    "synthetic_weights",
    "walk",
    "weight_bytes",
    "write_synthetic",
]
