"""Measuring what the neurons of a model do on a text; `docs/measure.md` has the definitions."""

from .report import Report, merge
from .run import measure

__all__ = ["Report", "measure", "merge"]
