"""The Triton kernels for NVIDIA GPUs: one file per op with its `launch`, imported when a CUDA tensor first needs it.

`why_not()` says what keeps them from running; the references of the ops then run on the GPU, after one line in the log.
What they share: `layout` (how a matrix reaches a kernel), `rows` and `tiles` (few and more tokens), `select`, `up` and
`down` (the FFN), `segments` (lists that no one program writes), `configs` (sizes).
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

log = logging.getLogger("prosparse.kernels")
OPS = (
    "attend",
    "axpy_active",
    "gate_select",
    "glu_active",
    "glu_dense",
    "glu_exact",
    "glu_predicted",
    "linear",
    "plain_dense",
    "plain_exact",
    "plain_predicted",
    "predict_select",
    "rms_norm",
    "rotary_store",
    "sign_select",
)
OLDEST_TRITON = (3, 6)
OLDEST_GPU = (8, 0)  # asynchronous copies, bf16


@functools.cache
def why_not() -> str | None:
    """What keeps the kernels from running on this machine's GPU; None where they run."""
    installed = version()
    if installed is None:
        return "triton is not installed; run `pip install 'prosparse[gpu]'`"
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {installed} is older than {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]}; upgrade it"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {capability[0]}.{capability[1]}, and they need {OLDEST_GPU[0]}.0"
    return None


def version() -> str | None:
    """Of the installed triton; None where there is none."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def on_cuda(op: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """What runs an op on CUDA tensors: its Triton kernel where that can run, else the reference."""

    def run(*args: Any) -> Any:
        with torch.cuda.device(args[0].device):  # a launch goes to the current device
            return _implementation(op, reference)(*args)

    return run


@functools.cache
def _implementation(op: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    if reason := why_not():
        _say_once(reason)
        return reference
    return importlib.import_module(f".{op}", __package__).launch


@functools.cache
def _say_once(reason: str) -> None:
    log.warning("kernels.triton: not used, %s; running the PyTorch reference on the GPU, which is much slower", reason)
