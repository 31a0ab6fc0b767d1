"""Which neurons: the FFN blocks of the decoder, and what selects."""

from .ffn import DenseFFN, ExactFFN
from .predicted import PredictedFFN
from .selectors import Selector

__all__ = ["DenseFFN", "ExactFFN", "PredictedFFN", "Selector"]
