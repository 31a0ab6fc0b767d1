"""The order of copies and waits, without a GPU: copies that nobody waited for have not happened.

A stand-in for CUDA's streams: what the computing stream does happens at once, an asynchronous copy only when somebody
waits for an event behind it, and then with what its source holds by that time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import make_case
from divided_ffn import CPU, divide, some_order
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import SHARED_SIZE, new_tally
from prosparse.sparsity.link import Link

RELU = Activation("relu")
REAL_COPY, REAL_EMPTY, REAL_TO = Tensor.copy_, torch.empty, Tensor.to
NEURONS = 96


class Stream:
    """Work that waits; the computing stream has none."""

    def __init__(self, device: object = None) -> None:
        self.waiting: list[Callable[[], object]] = []

    def wait_stream(self, other: Stream) -> None:
        assert not other.waiting, "only the computing stream is waited for, which has nothing waiting"

    def wait_event(self, event: Event) -> None:
        if self is COMPUTE:
            event.synchronize()
        else:
            self.waiting.append(event.synchronize)


class Event:
    def __init__(self) -> None:
        self.stream, self.behind = COMPUTE, 0

    def record(self, stream: Stream) -> None:
        self.stream, self.before = stream, list(stream.waiting)

    def synchronize(self) -> None:
        for work in getattr(self, "before", []):
            if work in self.stream.waiting:
                self.stream.waiting.remove(work)
                work()


COMPUTE = Stream()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stream]]:
    """Link and DoubleBuffer take the CPU for a device with streams; yields the streams that they make."""
    made: list[Stream] = []
    current = [COMPUTE]

    def new(device: object = None) -> Stream:
        made.append(Stream())
        return made[-1]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def copy(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            return REAL_COPY(to, source)
        assert current[-1] is not COMPUTE, "an asynchronous copy belongs on the stream of copies"
        current[-1].waiting.append(lambda: REAL_COPY(to, source))
        return to

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        found = REAL_EMPTY(*size, **options)
        return found.fill_(255) if pin_memory else found  # NaN, until something has arrived

    def to(tensor: Tensor, *arguments: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        return tensor.clone() if non_blocking else REAL_TO(tensor, *arguments, **options)

    monkeypatch.setattr("prosparse.sparsity.link.has_streams", lambda device: True)
    monkeypatch.setattr("prosparse.sparsity.double_buffer.has_streams", lambda device: True)
    monkeypatch.setattr(torch.cuda, "Stream", new)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: COMPUTE)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "copy_", copy)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    yield made


@pytest.mark.parametrize("cuts", [(0, 0), (33, 12), (33, 33), (NEURONS, 40), (NEURONS, NEURONS)], ids=str)
@pytest.mark.parametrize("mode", ["exact", "dense"])
def test_steps_wait_for_all_that_they_use(
    streams: list[Stream], monkeypatch: pytest.MonkeyPatch, mode: str, cuts: tuple[int, int]
) -> None:
    case = make_case(3, 64, NEURONS, torch.bfloat16)
    ffn = divide(case, RELU, mode, *cuts, some_order(NEURONS), block_bytes=1024)
    asynchronous = []
    for tokens in (1, 3, 2):  # buffers grow, and are used again
        tally = new_tally("cpu", size=SHARED_SIZE)
        asynchronous.append((ffn.decode(case.x[:tokens], tally), tally))
    assert streams
    monkeypatch.undo()
    plain = divide(case, RELU, mode, *cuts, some_order(NEURONS))
    for tokens, (found, counted) in zip((1, 3, 2), asynchronous, strict=True):
        tally = new_tally("cpu", size=SHARED_SIZE)
        assert torch.equal(found, plain.decode(case.x[:tokens], tally))
        assert torch.equal(counted, tally)


@pytest.mark.parametrize("tokens", [1, 40])
def test_prompts_wait_for_all_blocks(streams: list[Stream], monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    case = make_case(tokens, 64, NEURONS, torch.bfloat16)
    ffn = divide(case, RELU, "exact", 33, 12, some_order(NEURONS), block_bytes=1024)
    found = [ffn.prefill(case.x) for _ in range(2)]
    monkeypatch.undo()
    expected = divide(case, RELU, "exact", 33, 12, some_order(NEURONS), block_bytes=1024).prefill(case.x)
    assert all(torch.equal(each, expected) for each in found)


def test_a_copy_that_nobody_waited_for_is_seen(streams: list[Stream]) -> None:
    """The stand-in itself: before the wait the buffer holds what it held."""
    link = Link(CPU, CPU)
    wait = link.send("input", [torch.ones(4)])
    assert bool(link._pinned["input"].view(torch.float32)[:4].isnan().all())
    assert torch.equal(wait()[0], torch.ones(4))
