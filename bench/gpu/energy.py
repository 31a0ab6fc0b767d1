"""Energy of a GPU by the counter of its board, which NVML reads; nothing is set."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch


def joules(call: Callable[[], object], us: float, seconds: float, device: torch.device) -> float | None:
    """Of one call; None where the board does not say, or no time is given.

    Args:
        call: asks the device for something.
        us: that takes about so long.
        seconds: how long to call it.
        device: whose.
    """
    read = counter(device) if seconds and device.type == "cuda" else None
    if read is None:
        return None
    calls = max(1, int(seconds * 1e6 / us))
    torch.cuda.synchronize(device)
    before = read()
    for _ in range(calls):
        call()
    torch.cuda.synchronize(device)
    return round((read() - before) / 1e3 / calls, 6)


def counter(device: torch.device, load: Callable[[str], Any] = ctypes.CDLL) -> Callable[[], int] | None:
    """Reads the millijoules that a board has spent since its driver was loaded; None where it cannot be read."""
    try:
        nvml = load("libnvidia-ml.so.1")
        handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
            return None

        def read() -> int:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
            return int(value.value)

        wrong = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
    except (OSError, AttributeError, RuntimeError):
        return None
    return None if wrong else read
