"""The clock on subjects whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from prosparse.bench.clock import LEAST_ROUNDS, Timing, interleave, speedup


class FakeTime:
    """A time that passes only when a subject says so."""

    def __init__(self) -> None:
        self.ns = 0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> int:
        return self.ns

    def subject(self, name: str, us_of_call):
        def call(number: int) -> None:
            self.calls.append((name, number))
            self.ns += int(us_of_call(number) * 1000)

        return call


def test_subjects_take_turns():
    clock = FakeTime()
    interleave({name: clock.subject(name, lambda _: 1) for name in "AB"}, rounds=2, warm_up=1, now_ns=clock)
    assert clock.calls == [("A", 0), ("B", 0), ("A", 1), ("B", 1), ("A", 2), ("B", 2)]


def test_a_turn_is_several_calls_after_some_that_are_not_counted():
    clock = FakeTime()
    calls = {name: clock.subject(name, lambda number: number) for name in "AB"}
    timings = interleave(calls, rounds=2, warm_up=2, now_ns=clock, turn=3, lead=2)
    turns = [[(name, first + n) for n in range(-2, 3)] for first in (2, 5) for name in "AB"]
    assert clock.calls == [("A", 0), ("B", 0), ("A", 1), ("B", 1), *(call for turn in turns for call in turn)]
    assert timings["B"].us.tolist() == [2, 3, 4, 5, 6, 7] and timings["B"].turn == 3


def test_quantiles_leave_out_the_warm_up():
    clock = FakeTime()
    calls = {"a": clock.subject("a", lambda number: 1e6 if number < 3 else number - 2)}  # timed: 1, 2 ... 101
    timing = interleave(calls, rounds=101, warm_up=3, now_ns=clock)["a"]
    assert (timing.p10, timing.median, timing.p90) == pytest.approx((11, 51, 91))


def test_stops_at_the_budget_but_not_before_ten_rounds():
    clock = FakeTime()
    short = interleave({"a": clock.subject("a", lambda _: 1e6)}, rounds=100, budget_s=3.5, now_ns=clock)["a"]
    assert short.us.size == LEAST_ROUNDS
    longer = interleave({"a": clock.subject("a", lambda _: 1e5)}, rounds=100, budget_s=3.5, now_ns=clock)["a"]
    assert longer.us.size == 36


def test_reports_progress_by_round():
    clock, seen = FakeTime(), []
    calls = {"a": clock.subject("a", lambda _: 1)}
    interleave(calls, rounds=3, now_ns=clock, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_speedup_of_paired_noise_is_narrow():
    noise = np.random.default_rng(1).exponential(1, 400)
    ratio = speedup(Timing(200 * (1 + noise)), Timing(100 * (1 + noise)))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))


def test_turns_are_drawn_whole():
    """Within a turn noise is the same here, so an interval from single calls would be too narrow."""
    noise = np.random.default_rng(3).exponential(1, 40).repeat(25)
    base, other = 300 * (1 + noise), 100 * (1 + np.random.default_rng(4).exponential(1, 40).repeat(25))
    single, whole = (speedup(Timing(base, turn), Timing(other, turn)) for turn in (1, 25))
    assert single.value == whole.value and whole.high - whole.low > 3 * (single.high - single.low)


def test_the_interval_holds_the_ratio_and_widens_with_noise():
    def interval(rounds: int) -> tuple[float, float]:
        rng = np.random.default_rng(2)
        base, other = (Timing(us * (1 + rng.exponential(1, rounds))) for us in (300, 100))
        ratio = speedup(base, other)
        assert ratio.low < ratio.value < ratio.high
        return ratio.low, ratio.high

    few, many = interval(20), interval(2000)
    assert few[1] - few[0] > 2 * (many[1] - many[0])
    assert many[0] < 3 < many[1]
