"""Time: loading, prefill, decode, and the text that comes out."""

from .conversation import Conversation
from .engine import Engine
from .load import load
from .request import Generation

__all__ = ["Conversation", "Engine", "Generation", "load"]
