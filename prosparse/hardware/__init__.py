"""How fast a machine moves bytes: what a placement is made for."""

from .cached import this_machine
from .description import Machine
from .presets import PRESETS, named_machine
from .size import parse_size, show_size

__all__ = ["PRESETS", "Machine", "named_machine", "parse_size", "show_size", "this_machine"]
