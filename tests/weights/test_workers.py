"""Loading takes nobody's threads: what else a process does at the time keeps PyTorch's number of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny

from prosparse.config import ModelConfig
from prosparse.weights import Checkpoint, load_weights
from prosparse.weights.workers import block_workers


def in_a_thread(work: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def threads_after_loading(folder: Path) -> int:
    load_weights(Checkpoint(folder), ModelConfig.from_hf(folder))
    return torch.get_num_threads()


def test_threads_that_begin_while_a_model_is_loaded(tmp_path: Path, threads: None) -> None:
    folder = write_tiny(tmp_path)
    torch.set_num_threads(3)
    meanwhile: list[int] = []

    def progress(done: int, total: int) -> None:
        if not meanwhile:
            meanwhile.append(torch.get_num_threads())
            meanwhile.append(in_a_thread(torch.get_num_threads))  # which it would keep for ever
            meanwhile.append(in_a_thread(lambda: threads_after_loading(folder)))

    load_weights(Checkpoint(folder), ModelConfig.from_hf(folder), progress=progress)
    assert meanwhile == [3, 3, 3]
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 3


def test_each_worker_computes_alone(threads: None) -> None:
    torch.set_num_threads(3)
    met = threading.Barrier(3)  # passed only if there are so many
    with block_workers() as workers:
        assert list(workers.map(lambda _: (met.wait(60), torch.get_num_threads())[1], range(3))) == [1, 1, 1]


def test_a_thread_that_the_system_refuses_is_told_at_once(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    start, started = threading.Thread.start, []

    def refuse(self: threading.Thread) -> None:
        started.append(self)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"), block_workers():
        pass
    assert torch.get_num_threads() == 3
