"""Predictors: made without training, trained, judged, and exchanged with PowerInfer."""

from .build import build
from .evaluate import Entrant, evaluate, without_training
from .exchange import export_powerinfer, import_powerinfer
from .recording import Recording, judge_recording
from .train import train

__all__ = [
    "Entrant",
    "Recording",
    "build",
    "evaluate",
    "export_powerinfer",
    "import_powerinfer",
    "judge_recording",
    "train",
    "without_training",
]
