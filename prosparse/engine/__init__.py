"""Time: loading, prefill, decode, and the text that comes out."""

from .engine import Engine
from .load import load
from .request import Generation

__all__ = ["Engine", "Generation", "load"]
