"""How fast a machine moves bytes: what a placement is made for."""

from .cached import this_machine
from .crossover import HIGHEST, UNMEASURED, Times
from .description import Machine
from .kept_times import KeptTimes
from .presets import PRESETS, named_machine
from .size import parse_size, show_size

__all__ = [
    "HIGHEST",
    "PRESETS",
    "UNMEASURED",
    "KeptTimes",
    "Machine",
    "Times",
    "named_machine",
    "parse_size",
    "show_size",
    "this_machine",
]
