"""How each layer is computed, and where, decided before weights are loaded."""

from .choose import choose
from .place import place

__all__ = ["choose", "place"]
