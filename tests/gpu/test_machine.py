"""The machine, measured where there is a GPU. `make test-gpu` needs one; elsewhere these are skipped."""

from __future__ import annotations

import os

import pytest
import torch

from prosparse.config.shapes import shape
from prosparse.hardware import this_machine
from prosparse.hardware.measure import gpu_memory, measure_machine
from prosparse.placement import place
from prosparse.placement.activity import synthetic_profile
from prosparse.plan import fingerprint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("PROSPARSE_TEST_GPU") != "1", reason="no CUDA device here"
    ),
]


def test_what_is_measured_is_plausible():
    machine = measure_machine()
    assert 50e9 < machine.gpu_stream < 12e12 and machine.gpu_gather < 1.5 * machine.gpu_stream
    assert 1e9 < machine.to_gpu < machine.gpu_stream and 1e9 < machine.to_cpu < machine.gpu_stream
    assert 1e-6 < machine.sync_s < 1e-3 and 1e-7 < machine.gpu_launch_s < 1e-3
    _, total = torch.cuda.mem_get_info()
    assert 0 < machine.context_bytes < machine.gpu_bytes <= total


def test_memory_in_use_is_ours_to_take():
    before, _ = gpu_memory()
    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    after, _ = gpu_memory()
    assert held.is_cuda and abs(after - before) < 64 << 20


def test_a_plan_for_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config, machine = shape("minicpm-s-1b"), this_machine()
    profile = synthetic_profile(config, fingerprint(config), 0.88)
    plan = place(config, profile, machine, 2 << 30, mode="exact")
    assert plan.placement.gpu_bytes <= 2 << 30
    assert this_machine().gpu_stream == machine.gpu_stream  # kept
