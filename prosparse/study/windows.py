"""Texts as windows, which the engine reads for a profile of its own: see there."""

from ..engine.windows import CALIBRATION, DOCUMENT_END, HELD_OUT, Windows, begins_with_bos, cut, read_text

__all__ = ["CALIBRATION", "DOCUMENT_END", "HELD_OUT", "Windows", "begins_with_bos", "cut", "read_text"]
