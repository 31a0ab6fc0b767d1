"""prosparse doctor: what it says of this machine, and of one where something is missing."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from prosparse.cli import main
from prosparse.kernels import cpu
from prosparse.machine import Processors

TOPICS = (
    "prosparse", "python", "torch", "transformers", "tokenizers", "safetensors", "numpy", "triton", "processor",
    "threads", "kernels", "compiler", "gpu", "memory", "bandwidth", "packaged model",
)  # fmt: skip


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["warnings"] == sum(finding["warning"] is not None for finding in document["findings"])
    return {finding["topic"]: finding for finding in document["findings"]}


def test_report_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    in_use = cpu.isa()
    found = report(capsys)
    assert tuple(found) == TOPICS
    assert found["torch"]["data"] == torch.__version__
    assert found["kernels"]["data"]["in_use"] == in_use == cpu.isa()
    assert found["bandwidth"]["data"] > 1e8
    assert found["memory"]["data"] > 2**28
    assert found["packaged model"]["warning"] is None


def test_lines_are_aligned_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    before = time.process_time()
    assert main(["doctor"]) == 0
    assert time.process_time() - before < 3
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14].rstrip() for line in lines if line[:1].strip()][: len(TOPICS)] == list(TOPICS)
    assert all(line[14:16] == "  " for line in lines[: len(TOPICS)])
    assert "usable" in lines[-1] or "limit" in lines[-1]


def test_threads_are_those_that_can_run_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("prosparse.machine.processors", lambda: Processors(16, 8, 6.5))
    found = report(capsys)
    assert (found["threads"]["data"], found["threads"]["warning"]) == (6, None)
    assert "16 usable on 8 cores, time of 6.5 granted by the control group" in found["processor"]["value"]
    assert found["processor"]["data"] | {"name": ""} == {"name": "", "logical": 16, "cores": 8, "quota": 6.5}


def test_kernels_that_do_not_load_say_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("undefined symbol: aoti_torch_new")

    monkeypatch.setattr(cpu, "available", lambda: False)
    monkeypatch.setattr("prosparse.cli.doctor.importlib.import_module", fail)
    kernels = report(capsys)["kernels"]
    assert "undefined symbol: aoti_torch_new" in kernels["value"]
    assert "build_ext --inplace" in kernels["warning"]


def test_what_limits_is_a_warning_and_still_status_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    monkeypatch.setattr("prosparse.machine.available_memory", lambda: 10**9)
    monkeypatch.setattr("prosparse.cli.doctor.shutil.which", lambda name: None)
    monkeypatch.setattr(sys.modules["prosparse.engine.load"], "EMBEDDED_MODEL", "nowhere")
    found = report(capsys)
    assert "OMP_NUM_THREADS asks for more threads than the" in found["threads"]["warning"]
    assert "close other programs" in found["memory"]["warning"]
    assert "not measured" in found["bandwidth"]["value"]
    assert "none found" in found["compiler"]["value"]
    assert "nowhere: no such file or folder; reinstall" in found["packaged model"]["warning"]
