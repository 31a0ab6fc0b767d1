"""Names the weights of a checkpoint before they are loaded."""

from __future__ import annotations

from ..config import ModelConfig
from .checkpoint import Checkpoint
from .names import expected_shapes
from .neuron_profile import content_key
from .tables import names_of


def content_of(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """`content_key` of a model's weights, from its norms alone."""
    names, known = names_of(config), expected_shapes(config)
    patterns = (names.layer.attention_norm, names.layer.ffn_norm)
    norms = [pattern.format(layer) for layer in range(config.layers) for pattern in patterns]
    return content_key(checkpoint.read(name) for name in [*norms, names.final_norm] if name in known)
