"""The Triton kernels as one more backend of the op tests, whose tensors are on the CPU.

"triton" is Triton's interpreter, in a session with TRITON_INTERPRET=1: the launchers take CPU tensors as they are.
"cuda" is a GPU: arguments are moved there, and results and what was written to arguments come back.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels import triton
from prosparse.kernels.weight import Weight

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"  # of tests that call launchers
# On a GPU a list stays on the device, so a check of its contents would need a sync.
CHECKED_ON_THE_CPU_ALONE = ("test_refuses_a_list_that_would_read_elsewhere",)


def gpu_backends() -> list[str]:
    """What this session can run."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        importlib.import_module("triton_interpreter").prepare()  # before a kernel runs
        return ["triton"]
    return ["cuda"] if triton.why_not() is None else []


@contextmanager
def running(backend: str) -> Iterator[None]:
    """Ops on CPU tensors run the Triton kernels."""
    override = torch.library.Library("prosparse", "IMPL")
    for op in triton.OPS:
        override.impl(op, launcher(op) if backend == "triton" else through_gpu(op), "CPU", allow_override=True)
    yield
    override._destroy()  # the C++ kernels come back


def launcher(op: str) -> Callable[..., Any]:
    """The launcher of an op."""
    return importlib.import_module(f"prosparse.kernels.triton.{op}").launch


def through_gpu(op: str) -> Callable[..., Any]:
    overload = getattr(torch.ops.prosparse, op).default
    written = [
        argument.alias_info is not None and argument.alias_info.is_write for argument in overload._schema.arguments
    ]

    def run(*args: Any) -> Any:
        there = [arg.to("cuda") if isinstance(arg, Tensor) else arg for arg in args]
        result = overload(*there)
        for arg, copy, is_written in zip(args, there, written, strict=True):
            if is_written:
                arg.copy_(copy)
        return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()

    return run


def on_device(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def there(part: Any) -> Any:
    """A weight, a tensor or a dataclass of those on the device of the tests."""
    if isinstance(part, Tensor):
        return part.to(DEVICE)
    if isinstance(part, Weight):
        return Weight(part.codes.to(DEVICE), part.packed_columns)
    if dataclasses.is_dataclass(part) and any(isinstance(v, Tensor | Weight) for v in vars(part).values()):
        return dataclasses.replace(part, **{name: there(value) for name, value in vars(part).items()})
    return part
