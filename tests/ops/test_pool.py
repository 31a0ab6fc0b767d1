"""The threads of the C++ kernels: results stay the same whatever the pool goes through."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time

import pytest
import torch
from cases import make_case

from prosparse.kernels import cpu
from prosparse.kernels.activation import Activation
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.linear import linear
from prosparse.kernels.tally import new_tally

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference has no pool")
RELU = Activation("relu")


def compute(case):
    return glu_exact(case.x, *case.weights, RELU, new_tally("cpu"))


def test_workers_that_fell_asleep_come_back(threads):
    case = make_case(2, 40, 2000)
    expected = compute(case)
    for step in range(200):
        torch.set_num_threads(1 + step % 4)
        if step % 10 == 0:
            time.sleep(0.002)  # longer than an idle worker spins
        assert torch.equal(compute(case), expected), f"step {step}"


def test_many_short_regions(threads):
    torch.set_num_threads(3)
    case = make_case(1, 24, 70)
    expected = linear(case.x, case.gate)
    for _ in range(5000):
        assert torch.equal(linear(case.x, case.gate), expected)


def test_callers_at_the_same_time_get_their_own_results(threads):
    torch.set_num_threads(2)
    cases = [make_case(1 + i, 40, 1000, seed=i) for i in range(4)]
    expected = [compute(case) for case in cases]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            if not torch.equal(compute(cases[number]), expected[number]):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive(), "a caller waits for ever"
    assert not wrong


def test_python_goes_on_while_a_kernel_computes(threads):
    torch.set_num_threads(1)
    case = make_case(16, 1024, 16_000)
    spans: list[tuple[float, float]] = []

    def work() -> None:
        for _ in range(5):
            start = time.perf_counter()
            compute(case)
            spans.append((start, time.perf_counter()))

    worker, ticks = threading.Thread(target=work), []
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0)
    # were the lock of the interpreter held, no tick would lie well inside any call
    inside = [
        any(start + 0.2 * (end - start) < tick < end - 0.2 * (end - start) for tick in ticks) for start, end in spans
    ]
    assert len(spans) == 5 and any(inside)


def child(case, expected):
    torch.set_num_threads(2)
    sys.exit(0 if all(torch.equal(compute(case), expected) for _ in range(20)) else 3)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(threads):
    torch.set_num_threads(2)
    case = make_case(2, 40, 1000)
    expected = compute(case)  # the parent's threads are running now, and the child has none of them
    process = multiprocessing.get_context("fork").Process(target=child, args=(case, expected))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert torch.equal(compute(case), expected)
