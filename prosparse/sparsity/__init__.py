"""Which neurons: the FFN blocks of the decoder, and what selects."""

from .experts import ExpertsFFN
from .ffn import DenseFFN, ExactFFN
from .hybrid import HybridFFN
from .of_layer import other_ffn
from .plain import PlainDenseFFN, PlainExactFFN, PlainFFN
from .plain_predicted import PlainPredictedFFN
from .predicted import PredictedFFN
from .selectors import Selector, has_selector
from .twin import dense_twin

__all__ = [
    "DenseFFN",
    "ExactFFN",
    "ExpertsFFN",
    "HybridFFN",
    "PlainDenseFFN",
    "PlainExactFFN",
    "PlainFFN",
    "PlainPredictedFFN",
    "PredictedFFN",
    "Selector",
    "dense_twin",
    "has_selector",
    "other_ffn",
]
