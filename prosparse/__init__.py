"""prosparse: run ReLU-sparse language models by reading only the weights that matter.

Importing this package is light: no CUDA, no compiler, no transformers. Names are loaded when first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# A wheel carries the kernels inside the package; in a checkout they lie beside it, in kernels/.
if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_HOME = {
    "load": "engine",
    "Engine": "engine",
    "Generation": "engine",
    "Conversation": "engine",
    "SamplingParams": "config",
    "ModelConfig": "config",
    "ProsparseError": "errors",
    "accelerate": "hf",
    "restore": "hf",
    "stats": "hf",
    "patched": "hf",
    "AutoModelForCausalLM": "hf",
    "measure": "study",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prosparse' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
