"""A conversion that is stopped goes on at the shard it was at, whatever stopped it."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_model import write_tiny, write_weights

from prosparse.errors import CheckpointError, MachineError
from prosparse.weights import convert

ROOT = Path(__file__).parents[2]
MODULE = importlib.import_module("prosparse.weights.convert")  # the package's name for it is the function
SHARD = 20_000
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
convert = importlib.import_module("prosparse.weights.convert")
convert.SHARD_BYTES = int(sys.argv[4])
work = Path(sys.argv[2]).parent / f".{Path(sys.argv[2]).name}.converting"

def progress(done, total):
    if len(list(work.glob("*.safetensors"))) == 2 and list(work.glob("*.part")):
        os.kill(os.getpid(), signal.SIGKILL)

convert.convert(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "SHARD_BYTES", SHARD)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("weights", "fmt"), [("safetensors", "int8"), ("bin", "auto"), ("safetensors", "fp32")])
def test_after_a_kill(tmp_path, caplog, weights, fmt):
    source = write_tiny(tmp_path / "source", weights=weights)
    expected = bytes_of(convert(source, tmp_path / "expected", fmt))
    arguments = [str(source), str(tmp_path / "result"), fmt, str(SHARD)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    work = tmp_path / ".result.converting"
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    assert len(before) == 2 and not (tmp_path / "result").exists()
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "prosparse"):
        result = convert(source, tmp_path / "result", fmt, progress=lambda *step: seen.append(step))
    assert bytes_of(result) == expected
    assert {name: (result / name).stat().st_mtime_ns for name in before} == before  # not written again
    assert seen[-1][0] == seen[-1][1] and "holds 2 finished shards" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["expected", "result", "source"]


def interrupted(after: int):
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    return progress


def stop(source: Path, target: Path, fmt: str) -> Path:
    """A conversion that Ctrl-C ends between two shards."""
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, fmt, progress=interrupted(12))
    work = target.parent / f".{target.name}.converting"
    assert list(work.glob("*.safetensors"))
    return work


def test_after_an_interrupt_says_where_the_shards_are(tmp_path, caplog):
    source = write_tiny(tmp_path / "source")
    work = stop(source, tmp_path / "result", "int4")
    assert f"{work} keeps the" in caplog.text and "the same command goes on" in caplog.text
    assert bytes_of(convert(source, tmp_path / "result", "int4")) == bytes_of(convert(source, tmp_path / "b", "int4"))


@pytest.mark.parametrize("what", ["format", "source", "damage"])
def test_shards_of_another_conversion_are_not_used(tmp_path, what):
    source = write_tiny(tmp_path / "source")
    work = stop(source, tmp_path / "result", "fp32")
    fmt = "fp32"
    if what == "format":
        fmt = "int8"
    elif what == "source":
        write_tiny(source, seed=1)
    else:
        shard = next(work.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-1])
    expected = bytes_of(convert(source, tmp_path / "expected", fmt))
    assert bytes_of(convert(source, tmp_path / "result", fmt)) == expected


def test_a_fault_of_the_source_leaves_nothing_behind(tmp_path):
    source = write_tiny(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][-1, -1] = float("nan")  # in the last shard
    write_weights(source, tensors)
    with pytest.raises(CheckpointError, match="lm_head.weight has 1 of 8192 weights that are NaN"):
        convert(source, tmp_path / "result", "int8")
    assert os.listdir(tmp_path) == ["source"]


def test_two_at_once_do_not_meet(tmp_path):
    source, seen = write_tiny(tmp_path / "source"), []

    def second(done: int, total: int) -> None:
        with pytest.raises(MachineError, match="convert: another process is writing .*result; wait for it to end"):
            convert(source, tmp_path / "result", "int8")
        seen.append(done)

    result = convert(source, tmp_path / "result", "int8", progress=second)
    assert seen and bytes_of(result) == bytes_of(convert(source, tmp_path / "other", "int8"))
