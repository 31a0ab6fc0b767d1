"""GGUF files, read only: models of llama.cpp and PowerInfer, PowerInfer's predictors, and its lists of GPU neurons."""

from .checkpoint import GgufCheckpoint
from .config import read_config
from .file import GgufFile, looks_like_gguf, read_gguf
from .powerinfer import GpuIndex, LayerPredictor, predictor_threshold, read_gpu_index, read_predictors

__all__ = [
    "GgufCheckpoint",
    "GgufFile",
    "GpuIndex",
    "LayerPredictor",
    "looks_like_gguf",
    "predictor_threshold",
    "read_config",
    "read_gguf",
    "read_gpu_index",
    "read_predictors",
]
