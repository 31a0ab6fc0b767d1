"""The C++ kernels for the CPU: one extension, `_C`, which adds its ops to the library when imported.

`available()` says whether it is there, `isa()` which instruction set it runs, `cap_isa()` limits that.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import platform

import torch

log = logging.getLogger("prosparse.kernels")
_X86 = ("generic", "avx2", "avx512", "avx512vnni")
_ARM = ("generic", "neon")
# What the extension knows on this kind of processor, worst first.
ISAS = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(platform.machine(), ("generic",))


@functools.cache
def available() -> bool:
    """Load the extension once. False, with one log line, where it was not built or does not load."""
    try:
        importlib.import_module("._C", __package__)
    except ImportError as error:
        log.warning(
            "kernels.cpu: the C++ extension is not usable (%s); running the PyTorch reference, which is much slower. "
            "Install a C++20 compiler and reinstall prosparse, or run `python setup.py build_ext --inplace`",
            error,
        )
        return False
    if limit := os.environ.get("PROSPARSE_ISA"):
        _cap("PROSPARSE_ISA", limit)
    return True


def isa() -> str:
    """Instruction set in use: one of `ISAS`, or "reference" without the extension."""
    return torch.ops.prosparse.cpu_isa() if available() else "reference"


def cap_isa(limit: str) -> str:
    """Use no instruction set above `limit`; returns the one now in use. PROSPARSE_ISA sets it at start.

    Raises:
        ValueError: `limit` is not one of `ISAS`.
        RuntimeError: the extension is not there.
    """
    if not available():
        raise RuntimeError("cap_isa: the C++ extension is not loaded, so there is no instruction set to cap")
    return _cap("cap_isa", limit)


def _cap(where: str, limit: str) -> str:
    if limit not in ISAS:
        raise ValueError(f"{where}: limit is {limit!r}; supported are {', '.join(ISAS)}")
    return torch.ops.prosparse.cpu_cap_isa(limit)
