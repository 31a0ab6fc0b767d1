"""Two models in one process, at work at the same time: each writes what it writes alone."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_engine import make_model

from prosparse.engine import Engine, load

TURNS = 8


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[Engine]:
    folder = tmp_path_factory.mktemp("engines")
    first = make_model(folder / "first", hidden=128, head_dim=32, neurons=600, seed=1)
    second = make_model(folder / "second", family="bamboo", neurons=300, seed=2)
    return [load(first), load(second, weights="int4")]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_two_engines_at_once(engines: list[Engine], threads: None, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    expected = [engine.generate("In the garden", max_new_tokens=20).token_ids for engine in engines]
    found: list[list[list[int]]] = [[], []]
    together = threading.Barrier(2)

    def work(number: int) -> None:
        for _ in range(TURNS):
            together.wait(timeout=60)
            found[number].append(engines[number].generate("In the garden", max_new_tokens=20).token_ids)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert not worker.is_alive(), "an engine waits for ever"
    assert found == [[expected[0]] * TURNS, [expected[1]] * TURNS]


def test_an_engine_beside_pytorch_s_own_threads(engines: list[Engine], threads: None) -> None:
    """Both pools want the same processors; neither may wait for the other."""
    torch.set_num_threads(2)
    expected = engines[0].generate("In the garden", max_new_tokens=20).token_ids
    matrix, stop, products = torch.ones(300, 300), threading.Event(), 0

    def multiply() -> None:
        nonlocal products
        while not stop.is_set():
            (matrix @ matrix).sum().item()
            products += 1

    other = threading.Thread(target=multiply)
    other.start()
    try:
        for _ in range(TURNS):
            assert engines[0].generate("In the garden", max_new_tokens=20).token_ids == expected
    finally:
        stop.set()
        other.join(timeout=60)
    assert products > 0 and not other.is_alive()
