"""Rounding to int8 and int4 with a text: what matrices are multiplied with decides how they are rounded."""

from .convert import TOKENS, convert_calibrated

__all__ = ["TOKENS", "convert_calibrated"]
