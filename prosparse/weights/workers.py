"""Threads that convert blocks of matrices, each of which computes alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch

_starting = threading.Lock()


@contextmanager
def block_workers() -> Iterator[Executor]:
    """As many threads as PyTorch may use, each of which does its blocks alone.

    With OpenMP all threads meet after every operation on a block, and wait spinning: on a machine that has other work,
    loading took five times the processor time.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        _start_alone(pool, threads)
        yield pool


def _start_alone(pool: Executor, threads: int) -> None:
    """Start the threads of a pool. Each takes PyTorch's number of threads when it first asks, and keeps it.

    So would any other thread of the program, all its life: the number is 1 only as long as it takes to start these.
    """
    met = threading.Barrier(threads)  # so that none of them asks for two

    def ask() -> None:
        torch.get_num_threads()
        met.wait()

    with _starting:
        held = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            asked = [pool.submit(ask) for _ in range(threads)]
            for each in asked:
                each.result()
        finally:
            torch.set_num_threads(held)
            met.abort()  # where the system refuses a thread, the others would wait for it
