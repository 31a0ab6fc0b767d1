"""Sampling options: what is refused, and in which words."""

from __future__ import annotations

import math

import pytest

from prosparse.config import SamplingParams
from prosparse.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 2.0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        pytest.param("temperature", 10**400, id="temperature-huge"),
        ("temperature", "hot"),
        ("temperature", None),
        ("temperature", True),
        ("top_k", -3),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("top_p", "0.9"),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
        ("stop", ("",)),
        ("stop", ("a", 3)),
        ("stop", 5),
        ("stop", None),
        ("stop", ("x" * 1025,)),
        ("stop", tuple(map(str, range(65)))),
        ("ignore_eos", "yes"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"sampling: {name} must be ") as caught:
        SamplingParams(**{name: value})
    assert repr(value) in str(caught.value)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    params = SamplingParams(max_new_tokens=1, temperature=1e-9, top_k=10**9, top_p=1e-6, min_p=1, seed=2**63 - 1)
    assert not params.greedy
    assert SamplingParams(max_new_tokens=None, temperature=0).greedy


def test_stop_may_be_one_string_or_any_list() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
