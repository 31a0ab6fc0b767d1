"""Predictors: made without training, trained, judged, and exchanged with PowerInfer."""

from .build import build

__all__ = ["build"]
