"""Which neurons: the FFN blocks of the decoder."""

from .ffn import DenseFFN, ExactFFN

__all__ = ["DenseFFN", "ExactFFN"]
