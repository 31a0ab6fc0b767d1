"""Colours of the figures, readable on white and on black, and to most colour-blind eyes."""

from __future__ import annotations

import math

SERIES = ("#2a6fbb", "#d1742b", "#5c9a3d", "#8a5cb8")
QUIET = "#9aa5b1"
NEVER = "#d5d9de"
RAMP = ((222, 235, 247), (107, 174, 214), (8, 69, 148), (8, 29, 88))  # pale to dark blue
FLOOR = 1e-4  # the lowest frequency that has a colour of its own


def ramp(share: float) -> str:
    """From pale (0) to dark (1)."""
    at = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (at - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def of_layer(layer: int, layers: int) -> str:
    """Pale for the first layer, dark for the last."""
    return ramp(0.2 + 0.6 * layer / max(1, layers - 1))


def of_frequency(frequency: float, steps: int = 16) -> str:
    """On a logarithmic scale from `FLOOR` to 1, in so many steps."""
    if frequency <= 0:
        return NEVER
    share = 1 - math.log(max(frequency, FLOOR)) / math.log(FLOOR)
    return ramp(round(share * steps) / steps)
