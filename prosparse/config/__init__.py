"""What a model is and how a user wants it run: frozen dataclasses, checked when made."""

from .model import ModelConfig
from .rope import RopeConfig
from .sampling import SamplingParams

__all__ = ["ModelConfig", "RopeConfig", "SamplingParams"]
