"""What is said where a GPU's memory does not do, with a stand-in for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import GIB, FakeCuda
from parity.rows import ROWS
from tiny_engine import make_model
from tiny_families import write_opt

import prosparse
from prosparse.cli import main
from prosparse.engine import Engine
from prosparse.engine.memory_limit import Grant
from prosparse.engine.session import Session
from prosparse.errors import MachineError

MIB = 1 << 20
WORDS = (
    "CUDA out of memory. Tried to allocate {}. GPU 0 has a total capacity of 7.60 GiB of which 5.75 MiB is free. "
    "Including non-PyTorch memory, this process has 7.59 GiB memory in use."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("m") / "m", neurons=4096, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return prosparse.load(folder)


def out_of_memory(asked: str = "2.00 GiB") -> Any:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError(WORDS.format(asked))

    return fail


def test_too_little_at_load_names_formats_and_a_budget(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = FakeCuda(context=0).install(monkeypatch)
    cuda.others = cuda.total - 2 * MIB
    assert main(["generate", str(folder), "--prompt", "a", "--device", "cuda"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "as bf16, but 0.0 GiB of cuda memory are free; --weights int4 (0.0 GiB) would fit" in err
    cuda.others = cuda.total - 3 * GIB
    monkeypatch.setattr(
        "prosparse.weights.divide.bytes_per_row", lambda fmt, columns: columns << (18 if fmt[0] == "i" else 20)
    )
    with pytest.raises(MachineError, match=r"--budget 3.5GiB would fit$"):  # of which 0.5 are the context
        prosparse.load(folder, device="cuda")


def test_memory_that_is_gone_while_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others took meanwhile, or what is no matrix."""
    FakeCuda(others=5 * GIB).install(monkeypatch)
    monkeypatch.setattr(sys.modules[prosparse.load.__module__], "load_weights", out_of_memory("1.50 GiB"))
    with pytest.raises(
        MachineError,
        match=r"^load: out of GPU memory: 1.50 GiB more were asked for, 2.50 GiB are free; --weights int8 \(.*\) or "
        r"--weights int4 \(.*\) or --budget 3GiB, which leaves cold neurons to the CPU, would fit$",
    ) as raised:
        prosparse.load(folder, device="cuda")
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("verb", ["generate", "stream", "logits"])
def test_memory_that_does_not_do_for_a_run(engine: Engine, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    FakeCuda(others=7 * GIB + 300 * MIB).install(monkeypatch)
    monkeypatch.setattr(Session, "prefill", out_of_memory("300.00 MiB"))
    with pytest.raises(MachineError, match=f"^{verb}: out of GPU memory: 300.0 MiB more were asked for, 212.0 MiB are"):
        list(getattr(engine, verb)([5, 6]))


def test_a_budget_that_does_not_do(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda().install(monkeypatch)
    monkeypatch.setattr(Session, "prefill", out_of_memory())
    limit = Grant(4 * GIB, torch.device("cuda"))
    monkeypatch.setattr(engine, "_limit", limit)
    cuda.reserved = 3 * GIB
    with pytest.raises(
        MachineError,
        match="2.00 GiB more were asked for, but of a budget of 4.00 GiB 3.00 GiB are taken, and 4.50 GiB are free; "
        "pass at least --budget 6GiB, or lower --context 512",
    ):
        engine.generate([5, 6])
    limit.release()


def test_a_model_that_nothing_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other format, and no other device to share FFNs without up projection with."""
    engine = prosparse.load(next(row for row in ROWS if row.write is write_opt).make(tmp_path / "m"), weights="int4")
    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(Session, "prefill", out_of_memory("in words"))
    with pytest.raises(
        MachineError, match=r"more was asked for, 7.50 GiB are free; lower --context \d+, or use --device"
    ):
        engine.generate([5, 6])
