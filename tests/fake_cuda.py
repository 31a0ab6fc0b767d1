"""A GPU's memory as PyTorch tells of it, where there is no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from prosparse.engine import memory_limit

GIB = 1 << 30


@dataclass
class FakeCuda:
    """Bytes.

    Args:
        total: of the GPU.
        context: that the driver takes for this process.
        reserved: by PyTorch.
        others: that other processes have.
        fraction: of the total that PyTorch may reserve.
    """

    total: int = 8 * GIB
    context: int = GIB // 2
    reserved: int = 0
    others: int = 0
    fraction: float = 1.0

    @property
    def free(self) -> int:
        return self.total - self.context - self.reserved - self.others

    @property
    def allowed(self) -> float:
        """What PyTorch may reserve."""
        return self.fraction * self.total

    def install(self, patch: pytest.MonkeyPatch) -> FakeCuda:
        """In place of what `torch.cuda` says."""

        def limit(fraction: float, device: torch.device) -> None:
            assert device.index is not None and 0 <= fraction <= 1, "as PyTorch checks"
            self.fraction = fraction

        def limited(device: torch.device) -> float:
            assert device.index is not None, "as PyTorch checks"
            return self.fraction

        for name, function in {
            "is_available": lambda: True,
            "mem_get_info": lambda device=None: (self.free, self.total),
            "memory_reserved": lambda device=None: self.reserved,
            "get_device_properties": lambda device=None: SimpleNamespace(total_memory=self.total),
            "current_device": lambda: 0,
            "get_per_process_memory_fraction": limited,
            "set_per_process_memory_fraction": limit,
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, function)
        patch.setattr(memory_limit, "load_libraries", lambda: None)
        return self
