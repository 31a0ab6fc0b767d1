"""How many threads can run at once, read from made-up trees of /sys and /proc."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_engine import make_model

from prosparse import machine
from prosparse.engine import load
from prosparse.machine import Processors, default_threads, processors


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def siblings(*cores: str) -> dict[str, str]:
    """Topology files; "0,4" is a core of the processors 0 and 4."""
    folder = "sys/devices/system/cpu"
    return {f"{folder}/cpu{number}/topology/thread_siblings_list": core for core in cores for number in core.split(",")}


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def v1(place: str, quota: int) -> dict[str, str]:
    """The quota of a control group below its controller's folder, microseconds of 100 ms."""
    values = {"quota": quota, "period": 100_000}
    return {f"sys/fs/cgroup/{place}/cpu.cfs_{name}_us": str(value) for name, value in values.items()}


def v2(place: str, text: str) -> dict[str, str]:
    return {f"sys/fs/cgroup/{place}/cpu.max": text}


def member(*lines: str) -> dict[str, str]:
    return {"proc/self/cgroup": "\n".join(lines)}


V1 = member("5:memory:/box", "3:cpu,cpuacct:/box/inner", "1:name=systemd:/box")
ANY = Processors(8, 8, None)
TREES: dict[str, tuple[dict[str, str], Processors]] = {
    "nothing can be read": ({}, ANY),
    "one thread a core": (siblings(*"01234567"), ANY),
    "two threads a core": (siblings("0,4", "1,5", "2,6", "3,7"), Processors(8, 4, None)),
    "v2": (member("0::/") | v2(".", "300000 100000"), Processors(8, 8, 3)),
    "v2, no quota": (member("0::/") | v2(".", "max 100000"), ANY),
    "v2, a group above has less": (
        member("0::/a/b") | v2("a/b", "500000 100000") | v2("a", "250000 100000"),
        Processors(8, 8, 2.5),
    ),
    "v2, the host's path in a container": (member("0::/docker/ab") | v2(".", "150000 100000"), Processors(8, 8, 1.5)),
    "v1": (V1 | v1("cpu,cpuacct/box", 400_000) | v1("cpu,cpuacct/box/inner", -1), Processors(8, 8, 4)),
    "v1, the host's path in a container": (V1 | v1("cpu,cpuacct", 50_000), Processors(8, 8, 0.5)),
    "v1, of another controller": (V1 | v1("memory/box", 1), ANY),
    "nonsense": (member("nonsense", "0::/") | v2(".", "what is this"), ANY),
}


@pytest.mark.parametrize(("files", "expected"), TREES.values(), ids=TREES.keys())
def test_what_a_tree_says(tmp_path, files, expected):
    assert processors(write(tmp_path, files)) == expected


def test_only_processors_of_the_affinity_count(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5})
    tree = write(tmp_path, siblings("0,4", "1,5", "2,6", "3,7"))
    assert processors(tree) == Processors(logical=3, cores=2, quota=None)


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (9.0, 4), (2.5, 2), (1.0, 1), (0.3, 1)])
def test_threads_fit_the_cores_and_the_quota(quota, threads):
    assert Processors(8, 4, quota).threads == threads


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.setattr(machine, "processors", lambda: Processors(4, 2, None))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(("held", "default"), [(4, 2), (2, 2), (1, 1)])
def test_the_default_lowers_pytorch_s_number_and_never_raises_it(two_at_once, held, default):
    torch.set_num_threads(held)
    assert default_threads() == default


def test_the_environment_has_the_last_word(two_at_once, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    assert default_threads() == 3


def test_load_uses_the_default_and_says_so(tmp_path, two_at_once, caplog):
    folder = make_model(tmp_path / "model")
    torch.set_num_threads(3)
    with caplog.at_level(logging.INFO, "prosparse"):
        load(folder)
    assert torch.get_num_threads() == 2 and "2 threads instead of 3: no more can run at once here" in caplog.text
    load(folder, threads=3)
    assert torch.get_num_threads() == 3  # asked for


def test_this_machine():
    found = processors()
    assert 1 <= found.cores <= found.logical and found.threads >= 1


def cpuinfo(*fields: str) -> dict[str, str]:
    """Two processors of these fields."""
    return {"proc/cpuinfo": "\n\n".join("\n".join([f"processor\t: {n}", *fields]) for n in range(2))}


NAMES: dict[str, tuple[dict[str, str], str]] = {
    "x86": (cpuinfo("vendor_id\t: AuthenticAMD", "model name\t: AMD EPYC 9R14"), "AMD EPYC 9R14"),
    "Arm": (cpuinfo("CPU implementer\t: 0x41", "CPU part\t: 0xd4f"), "aarch64, implementer 0x41, part 0xd4f"),
    "Arm, two kinds of cores": (
        {"proc/cpuinfo": "CPU implementer\t: 0x61\nCPU part\t: 0x022\n\nCPU implementer\t: 0x61\nCPU part\t: 0x023"},
        "aarch64, implementer 0x61, part 0x022/0x023",
    ),
    "nothing can be read": ({}, "aarch64"),
}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Say what system and machine Python runs on."""

    def say(system: str, machine: str) -> None:
        for name, answer in (("system", system), ("machine", machine), ("processor", "")):
            monkeypatch.setattr(platform, name, lambda answer=answer: answer)

    return say


@pytest.mark.parametrize(("files", "expected"), NAMES.values(), ids=NAMES.keys())
def test_the_name_of_the_processor(tmp_path, on, files, expected):
    on("Linux", "aarch64")
    assert machine.processor_name(write(tmp_path, files)) == expected


@pytest.mark.parametrize("brand", ["Apple M2 Max", None])
def test_the_name_of_the_processor_on_macos(tmp_path, on, monkeypatch, brand):
    def run(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        if brand is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout=f"{brand}\n")

    on("Darwin", "arm64")
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.processor_name(tmp_path) == (brand or "arm64")


def test_a_system_without_affinity_and_proc(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert processors(tmp_path) == Processors(8, 8, None)

    def missing(path: Path, *args: object) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine.available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
