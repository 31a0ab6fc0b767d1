"""What this machine is: processor, memory, threads, device."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch

from prosparse.kernels import cpu, triton

from .errors import MachineError, UserError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str) -> torch.device:
    """The device a user means.

    Raises:
        UserError: not one of `DEVICES`.
        MachineError: cuda was asked for and is not there.
    """
    if name not in DEVICES:
        raise UserError(f"load: device is {name!r}; supported are {', '.join(DEVICES)}")
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        why = (
            "this PyTorch is built without CUDA" if torch.version.cuda is None else "no usable GPU or driver was found"
        )
        raise MachineError(f"load: device cuda is not available: {why}; use --device cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def available_memory() -> int:
    """Bytes of memory that can be used without swapping; physical memory where the kernel does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def processor_name() -> str:
    """Marketing name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """One line for a person: where the model runs and with which kernels."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, kernels: {kernel_name(device)}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, kernels: {kernel_name(device)}"


def kernel_name(device: torch.device) -> str:
    """Which implementation of the ops runs on a device, and on a GPU why not Triton."""
    if device.type == "cuda":
        reason = triton.why_not()
        return f"PyTorch reference ({reason})" if reason else f"Triton {triton.version()}"
    return f"C++ {cpu.isa()}" if device.type == "cpu" and cpu.available() else "PyTorch reference"
