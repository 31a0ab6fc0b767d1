"""Cold operands: copies that take turns, so that a call meets memory that nothing has touched for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from . import probe

T = TypeVar("T")


def copies_of(nbytes: int) -> int:
    """How many copies of operands of some bytes are more than a cache holds, read with the probe between two calls."""
    beside = -(-probe.BUFFER_BYTES // (nbytes + probe.CALL_BYTES)) + 1
    return max(2, min(-(-probe.BUFFER_BYTES // nbytes), beside))


def distance(copies: int, nbytes: int) -> int:
    """Bytes that are read between two calls with the same copy."""
    return copies * (nbytes + probe.CALL_BYTES)


def in_turn(copies: Sequence[T], call: Callable[[T, int], object], start: float = 0.0) -> Callable[[int], object]:
    """A call for the clock that goes around the copies, from a share `start` of the way."""
    first = int(start * len(copies))
    return lambda number: call(copies[(number + first) % len(copies)], number)
