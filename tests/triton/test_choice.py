"""Which kernels run on a GPU, and what is said where Triton's cannot."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from prosparse import machine
from prosparse.kernels import triton
from prosparse.kernels.library import LIBRARY
from prosparse.kernels.linear import linear_reference

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing remembered from before, nor left behind."""
    caches = (triton.why_not, triton._implementation, triton._say_once)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def pretend(monkeypatch, version="3.6.0", capability=(9, 0), gpu=True):
    def installed(package):
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(triton.metadata, "version", installed)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"version": "3.10.1+git"}, None),
        ({"version": None}, "triton is not installed; run `pip install 'prosparse[gpu]'`"),
        ({"version": "3.5.1"}, "triton 3.5.1 is older than 3.6; upgrade it"),
        ({"gpu": False}, "there is no CUDA device"),
        ({"capability": (7, 5)}, "Some GPU has compute capability 7.5, and they need 8.0"),
    ],
)
def test_says_why_not(monkeypatch, change, reason):
    pretend(monkeypatch, **change)
    assert triton.why_not() == reason
    name = machine.kernel_name(GPU)
    assert name == (f"PyTorch reference ({reason})" if reason else f"Triton {change.get('version', '3.6.0')}")


def test_the_reference_runs_instead_and_that_is_said_once(monkeypatch, caplog):
    pretend(monkeypatch, version=None)
    for _ in range(2):
        assert triton._implementation("linear", linear_reference) is linear_reference
    assert triton._implementation("rms_norm", len) is len
    (record,) = caplog.records
    assert "kernels.triton: not used, triton is not installed" in record.message


def test_every_op_has_its_launcher_and_its_key(monkeypatch):
    pytest.importorskip("triton")
    pretend(monkeypatch)
    for op in triton.OPS:
        assert callable(triton._implementation(op, len)) and triton._implementation(op, len) is not len
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{LIBRARY.ns}::{op}", "CUDA")
