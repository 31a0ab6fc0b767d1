"""How each layer is computed, decided before weights are loaded."""

from .choose import choose

__all__ = ["choose"]
