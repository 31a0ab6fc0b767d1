"""Measuring, on buffers so small that it takes no time: what comes out is a machine. What is kept, and when not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prosparse.errors import MachineError
from prosparse.hardware import PRESETS, Machine, cached, measure, this_machine

MACHINE = PRESETS["8gb-pcie4"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measure, "HELD", 4 << 20)
    monkeypatch.setattr(measure, "BLOCK", 1 << 20)
    monkeypatch.setattr(measure, "CALLS", 3)


def test_a_cpu_is_measured(quick):
    found = measure.measure_cpu()
    machine = dataclasses.replace(MACHINE, **found)  # whose fields are checked
    assert set(machine.cpu_formats) == {"int8", "int4"}
    assert 1e6 < machine.cpu_stream < 1e13 and 1e6 < machine.cpu_gather


def test_without_a_gpu_nothing_is_placed_unless_a_machine_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="no usable GPU was found.* pass --machine with a preset"):
        this_machine()


@pytest.fixture
def with_gpu(monkeypatch, tmp_path):
    """A machine that looks as if it had a GPU; returns how often it was measured."""
    measured = []

    def pretend() -> Machine:
        measured.append(1)
        return MACHINE

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(cached, "gpu_memory", lambda: (5 << 30, 1 << 28))
    monkeypatch.setattr(cached, "load_libraries", lambda: None)
    monkeypatch.setattr(cached, "measure_machine", pretend)
    monkeypatch.setattr(cached.triton, "version", lambda: "3.6.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return measured


def test_a_measurement_is_kept_but_free_memory_is_asked_anew(with_gpu, monkeypatch):
    first = this_machine()
    monkeypatch.setattr(cached, "gpu_memory", lambda: (4 << 30, 1 << 28))
    second = this_machine()
    assert len(with_gpu) == 1
    assert (first.gpu_bytes, second.gpu_bytes) == (5 << 30, 4 << 30)
    assert dataclasses.replace(second, gpu_bytes=1, context_bytes=1) == dataclasses.replace(
        MACHINE, gpu_bytes=1, context_bytes=1
    )


@pytest.mark.parametrize("what", ["threads", "version", "damaged"])
def test_a_stale_measurement_is_made_again(with_gpu, monkeypatch, what):
    this_machine()
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif what == "version":
        monkeypatch.setattr(cached, "__version__", "99")
    else:
        cached.cache_file(cached.circumstances()).write_text('{"schema_version": 0}')
    this_machine()
    this_machine()
    assert len(with_gpu) == 2


def test_a_cache_that_cannot_be_written_is_no_fault(with_gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert this_machine().name == MACHINE.name and len(with_gpu) == 1
