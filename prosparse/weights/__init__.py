"""From files to weights in memory: which tensors a model has, where they lie, and how they are read."""

from .checkpoint import Checkpoint
from .convert import convert
from .folder import resolve_model
from .load import load_weights
from .model_weights import LayerWeights, ModelWeights

__all__ = ["Checkpoint", "LayerWeights", "ModelWeights", "convert", "load_weights", "resolve_model"]
