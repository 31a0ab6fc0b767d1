"""Subject "lookup": what steps of several tokens cost, and texts whose drafts are right as often as is chosen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prosparse.bench import lookup
from prosparse.bench.lookup import RIGHT, STEPS, KnownText, compare_lookup
from prosparse.bench.row import KEYS
from prosparse.bench.table import render
from prosparse.errors import MachineError

pytestmark = pytest.mark.usefixtures("small_probe", "threads")


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_steps_then_texts(weights):
    rows = compare_lookup("tiny", 0.8, weights, tokens=12, calls=3, rounds=2)
    assert all(tuple(row) == KEYS for row in rows) and {row["subject"] for row in rows} == {"lookup"}
    steps, texts = rows[: len(STEPS)], rows[len(STEPS) :]
    assert [row["quality"]["tokens"] for row in steps] == list(STEPS) and steps[0]["quality"]["cost"] == 1
    for row in steps:
        assert row["quality"]["cost"] == pytest.approx(row["p10_us"] / steps[0]["p10_us"], rel=0.01)
        assert row["bytes"] > 0 and row["weights"] == weights
    assert [row["part"] for row in texts] == ["no drafts", *(f"drafts {right:.0%} right" for right in RIGHT)]
    none, never, *_, always = texts
    assert none["quality"] is None and never["quality"]["accepted"] == 0
    assert always["quality"]["accepted"] == always["quality"]["drafted"] > 0
    for row in texts:
        assert row["tokens_per_s"] == pytest.approx(12e6 / row["median_us"], rel=0.01)
    out = io.StringIO()
    Console(file=out, width=200).print(render(rows))
    assert "drafts 75% right" in out.getvalue() and "came" in out.getvalue()


def test_drafts_are_right_as_often_as_they_should():
    text = list(range(1000))
    for right in RIGHT:
        known, found = KnownText(text, right, 2000), 0
        for token in text[:-1]:
            found += known.draft(1).tokens[0] == token
            known.push(token)
        assert found / 999 == pytest.approx(right, abs=0.05)
    assert KnownText(text[:3], 1.0, 2000).draft(5).tokens == [0, 1, 2]


def test_a_text_that_changes_is_refused(monkeypatch):
    texts = iter([(1, 2), (1, 3)])
    monkeypatch.setattr(lookup.Request, "token_ids", property(lambda self: next(texts)))
    with pytest.raises(MachineError, match="change the text; nothing was timed"):
        compare_lookup("tiny", 0.8, "fp32", tokens=2, calls=2, rounds=1)
