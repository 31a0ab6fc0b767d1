"""What `make gpu-check` does around its measurements: parts, limits, state, the table, and no GPU."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from prosparse.bench.gpu import check, energy
from prosparse.bench.gpu.check import JOBS, Job, main
from prosparse.bench.gpu.report import HEAD, table
from prosparse.bench.row import make_row

ROW = make_row(
    subject="decode", shape="minicpm-s-1b", mode="exact", weights="bf16", activation_sparsity=0.88, p10_us=1000.0,
    bytes=10**9, fraction_of_floor=0.5, dense_ratio=1.2, tokens_per_s=900.0, note="one CUDA graph a token",
    joules_per_token=0.25,
)  # fmt: skip


def python(code):
    return ("-c", code)


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "gpu-check: no NVIDIA GPU here; run it on a CUDA machine (--dry-run lists the parts)\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_every_part(capsys):
    assert main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [job.name for job in JOBS]
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])


def test_parts_have_names_of_their_own_and_fit():
    names = [job.name for job in JOBS]
    assert len(set(names)) == len(names) and all(job.limit_s <= check.TOTAL_S for job in JOBS)
    assert set(check.WARM) <= set(names)
    warm = next(job for job in JOBS if job.name == "warm")
    assert len(set(warm.commands)) == len(check.WARM) * len(check.FORMATS)
    for job in JOBS:
        for path in (part for command in job.commands for part in command if part.startswith("tests/")):
            assert (check.ROOT / path).exists(), path


def test_pytest_knows_every_mark_where_a_part_starts_it():
    """With one that it does not know it refuses the file, and with that every test of the part."""
    listed = subprocess.run(
        [sys.executable, *check.PYTEST, "--markers"],
        cwd=check.ROOT, env=os.environ | {"PYTHONPATH": f"{check.ROOT}{os.pathsep}{check.ROOT / 'tests'}"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    used = {
        mark
        for file in (check.ROOT / "tests").rglob("test_*.py")
        for mark in re.findall(r"pytest\.mark\.(\w+)", file.read_text())
    }
    assert "filterwarnings" in used and used <= set(re.findall(r"^@pytest\.mark\.(\w+)", listed, re.M))


def test_a_part_that_fails_or_hangs_leaves_its_rows_and_the_others(tmp_path, capsys):
    row = json.dumps(ROW)
    writes = f"import sys; open(sys.argv[1], 'a').write({row!r} + chr(10))"
    half_a_row = f"{writes}; open(sys.argv[1], 'a').write({row[:9]!r}); import time; time.sleep(60)"
    jobs = [
        Job("fine", 30, "writes", ((*python(writes), "{rows}"), python("print('beside')"))),
        Job("broken", 30, "fails", (python("print('FAILED tests/x.py::y - because'); raise SystemExit(3)"),)),
        Job("slow", 2, "hangs", ((*python(half_a_row), "{rows}"),)),
        Job("missing", 30, "needs a tool", (python("1"),), ("no-such-tool",)),
    ]
    state: dict = {}
    assert check.check(jobs, state, tmp_path) == 1
    assert [part["status"] for part in state.values()] == ["done", "failed", "stopped", "left out"]
    assert state["broken"]["tail"] == "FAILED tests/x.py::y - because"
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [ROW, ROW] and (tmp_path / "table.txt").read_text() == table(rows)
    assert "beside" in (tmp_path / "log.txt").read_text()
    assert "not run: none; failed or stopped: broken, slow" in capsys.readouterr().out
    assert json.loads((tmp_path / "state.json").read_text()) == state


def test_a_part_that_was_cut_for_want_of_time_is_done_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "TOTAL_S", check.LEAST_S + 1)
    monkeypatch.setattr(check, "run", lambda *args: {"status": "stopped", "rows": [], "seconds": 9.0, "tail": ""})
    state: dict = {}
    jobs = [Job("long", check.LEAST_S + 60, "takes longer", ()), Job("short", check.LEAST_S, "hangs", ())]
    assert check.check(jobs, state, tmp_path) == 1
    assert [part["status"] for part in state.values()] == ["cut", "stopped"]
    assert "not run: long; failed or stopped: short" in capsys.readouterr().out
    monkeypatch.setattr(check, "run", lambda *args: {"status": "done", "rows": [], "seconds": 9.0, "tail": ""})
    check.check(jobs, state, tmp_path)
    assert [part["status"] for part in state.values()] == ["done", "stopped"]


def test_what_is_said_and_found_is_in_the_folder_as_it_comes(tmp_path):
    says = "import sys, pathlib; print('so far'); log, rows = map(pathlib.Path, sys.argv[1:3])"
    looks = f"{says}; rows.write_text('[]' + chr(10)); assert 'so far' in log.read_text(), 'kept back'"
    job = Job("open", 30, "looks at its own log", ((*python(looks), str(tmp_path / "log.txt"), "{rows}"),))
    assert check.run(job, 30, tmp_path)["rows"] == [[]] and (tmp_path / "running.jsonl").exists()


def test_a_tool_is_found_where_cuda_puts_it(tmp_path, monkeypatch):
    (tmp_path / "no-such-watcher").write_text('#!/bin/sh\nshift\necho watched\nexec "$@"\n')
    (tmp_path / "no-such-watcher").chmod(0o755)
    job = Job("watched", 30, "runs under a tool", (python("print('and run')"),), ("no-such-watcher", "--closely"))
    assert check.run(job, 30, tmp_path)["status"] == "left out"
    monkeypatch.setattr(check, "CUDA_TOOLS", str(tmp_path))
    found = check.run(job, 30, tmp_path)
    assert (found["status"], found["tail"]) == ("done", "watched\nand run")


def test_what_is_done_is_not_done_again_and_the_time_ends(tmp_path, capsys, monkeypatch):
    jobs = [Job(name, 30, name, (python("raise SystemExit('run again')"),)) for name in ("one", "two", "three")]
    state = {"one": {"status": "done", "rows": [ROW], "seconds": 1.0, "tail": ""}}
    monkeypatch.setattr(check, "TOTAL_S", check.LEAST_S - 1)
    assert check.check(jobs, state, tmp_path) == 0
    out = capsys.readouterr().out
    assert "the time is up" in out and "not run: two, three" in out
    monkeypatch.setattr(check, "TOTAL_S", 500)
    assert check.check(jobs[:2], state, tmp_path) == 1
    assert state["one"]["status"] == "done" and state["two"]["status"] == "failed"
    assert check.check(jobs[:1], state, tmp_path, again=True) == 1
    assert state["one"]["status"] == "failed"


@pytest.mark.parametrize("built", [True, False])
def test_state_of_another_machine_is_taken_over(built, tmp_path, monkeypatch, capsys):
    state = {job.name: {"status": "done", "rows": [], "seconds": 1.0, "tail": ""} for job in JOBS}
    (tmp_path / "before.json").write_text(json.dumps(state))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check.cpu, "available", lambda: built)
    assert main(["-o", str(tmp_path / "out"), "--resume", str(tmp_path / "before.json")]) == 0
    assert ("`make kernels/cpu/_C.abi3.so` builds them" in capsys.readouterr().out) != built


def test_the_table_is_short():
    other = {**ROW, "subject": "linear", "part": "qkv", "tokens_per_s": None, "joules_per_token": None, "note": None}
    text = table([ROW, other, {**other, "bytes": 0, "dense_ratio": None, "shape": None, "weights": None}])
    assert text.startswith(HEAD) and len(text.splitlines()) == 4 and max(map(len, text.splitlines())) < 140
    overlap = {**ROW, "note": "one CUDA graph a token, launches overlap"}
    assert "decode 1B graph overlap  " in table([overlap]) and "decode 1B op by op  " in table(
        [{**ROW, "note": "op by op, without a graph"}]
    )
    assert "decode 1B graph" in text and "900 tokens/s, 0.250 J" in text and "1000" in text
    assert table([]) == "no rows\n"


class Board:
    """NVML as far as it is asked."""

    def __init__(self, wrong=0):
        self.wrong, self.spent = wrong, 0

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        assert uuid == b"GPU-abc"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
        self.spent += 4000
        value._obj.value = self.spent
        return self.wrong


def test_energy_by_the_counter_of_the_board(monkeypatch):
    @dataclasses.dataclass
    class Properties:
        uuid: str = "abc"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    device, board = torch.device("cuda"), Board()
    read = energy.counter(device, lambda name: board)
    assert read is not None and (read(), read()) == (8000, 12000)
    assert energy.counter(device, lambda name: Board(wrong=3)) is None

    def refuse(name):
        raise OSError(name)

    assert energy.counter(device, refuse) is None
    monkeypatch.setattr(energy, "counter", lambda device: read)
    calls: list[int] = []
    assert energy.joules(lambda: calls.append(1), 100_000.0, 1.0, device) == pytest.approx(0.4)
    assert len(calls) == 10
    assert energy.joules(lambda: None, 1.0, 1.0, torch.device("cpu")) is None


def test_this_python_runs_the_parts():
    """The module that a part's process imports, and its name, are those of the table."""
    measuring = {job.name for job in JOBS if "--rows" in job.commands[0]}
    pytest.importorskip("triton")
    assert measuring == set(importlib.import_module("prosparse.bench.gpu.parts").PARTS)
