"""Which kernels a launcher would launch, with which arguments: the launcher runs on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from triton.backends.nvidia.compiler import CUDAOptions
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from prosparse.kernels.triton import gpu

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: the jitted function.
        grid: programs along each axis.
        values: argument name -> value.
        warps: of a program.
    """

    kernel: JITFunction
    grid: tuple[int, ...]
    values: dict[str, Any]
    warps: int

    @property
    def name(self) -> str:
        return self.kernel.__name__.removesuffix("_kernel")

    @property
    def programs(self) -> int:
        count = 1
        for n in self.grid:
            count *= n
        return count

    def source(self) -> ASTSource:
        """Specialised as Triton does at run time: constants, a 1, and numbers and addresses divisible by 16."""
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = self.values[parameter.name]
            if parameter.is_constexpr or isinstance(value, int) and value == 1:
                signature[parameter.name], constants[(i,)] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, torch.Tensor) or isinstance(value, int) and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)

    def key(self) -> str:
        """Equal for launches that compile to the same code."""
        source = self.source()
        return f"{self.name} {self.warps} {source.signature} {source.constants} {source.attrs}"


@contextmanager
def recorded(target: gpu.Gpu) -> Iterator[list[Launch]]:
    """Launches within are recorded, as for this GPU, instead of run."""
    found: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        names = [parameter.name for parameter in self.params]
        if unknown := set(options) - set(names) - set(CUDAOptions.__dataclass_fields__):
            raise TypeError(f"{self.__name__} and this Triton know no {', '.join(sorted(unknown))}")
        values = dict(zip(names, args, strict=False)) | {k: v for k, v in options.items() if k in names}
        found.append(Launch(self, tuple(grid), values, options["num_warps"]))

    with patch.object(JITFunction, "run", run), patch.object(gpu, "stand_in", target):
        yield found


def launches(target: gpu.Gpu, launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """What a launcher does with these arguments on this GPU."""
    with recorded(target) as found:
        launcher(*args)
    return found
