"""The schedule of training: what rises, what falls, and when, in tokens."""

from __future__ import annotations

import pytest
from training.schedule import Schedule

SINE = Schedule(100, 600, 1000, (1e-4, 1e-3, 3e-3), (0.2, 0.4, 0.6, 0.8))


def test_learning_rate_warms_up_stays_and_decays_to_zero() -> None:
    assert [SINE.lr_factor(t) for t in (0, 49, 99, 100, 599, 600, 800, 1000, 1001)] == [
        0.01, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0,
    ]  # fmt: skip


def test_penalty_is_off_then_constant_then_climbs_along_sines() -> None:
    assert [SINE.l1_factor(t) for t in (0, 199, 200, 399)] == [0.0, 0.0, 1e-4, 1e-4]
    assert SINE.l1_factor(500) == pytest.approx((1e-4 + 1e-3) / 2)  # half-way up the first sine
    assert SINE.l1_factor(450) == pytest.approx(1e-4 + 9e-4 * (1 - 2**-0.5) / 2)  # a quarter of the way
    assert SINE.l1_factor(600) == pytest.approx(1e-3)
    assert [SINE.l1_factor(t) for t in (800, 1000)] == [3e-3, 3e-3]
    climb = [SINE.l1_factor(t) for t in range(0, 1000)]
    assert climb == sorted(climb)


def test_a_decay_asked_for_begins_at_once_and_leaves_the_penalty_where_it_was() -> None:
    sooner = SINE.decayed_from(500, 250)
    assert [sooner.lr_factor(t) for t in (499, 500, 625, 750)] == [1.0, 1.0, 0.5, 0.0]
    assert [sooner.l1_factor(t) for t in (100, 300, 500)] == pytest.approx([SINE.l1_factor(t) for t in (100, 300, 500)])


@pytest.mark.parametrize("decay", [40, 4000])
def test_a_decay_under_way_may_be_made_shorter_or_longer(decay: int) -> None:
    other = SINE.decayed_from(900, decay)
    assert other.lr_factor(900) == pytest.approx(SINE.lr_factor(900), rel=0.01)
    assert other.lr_factor(900 + decay // 2) == pytest.approx(SINE.lr_factor(900) / 2, rel=0.02)
    assert other.lr_factor(900 + decay) == 0
    assert other.l1_factor(900) == SINE.l1_factor(900)


def test_it_survives_the_checkpoint() -> None:
    assert Schedule.from_dict(SINE.as_dict()) == SINE


def test_times_out_of_order_are_refused() -> None:
    with pytest.raises(SystemExit, match="decay begins at 2000 of 1000 tokens; they must be in this order"):
        Schedule(0, 2000, 1000)
    with pytest.raises(SystemExit, match="2 factors need 3 ascending shares, got"):
        Schedule(0, 500, 1000, (1e-4, 1e-3), (0.5, 0.4, 0.9))
