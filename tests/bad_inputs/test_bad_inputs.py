"""Every bad input ends in one line that says what is wrong, or in documented behaviour, as docs/errors.md has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs.outcome import CASES, INTRODUCTION, SECTIONS, Outcome, document, row, run

TABLE = Path(__file__).parents[2] / "docs" / "errors.md"
NUMBERED = [
    pytest.param(number, case, id=f"{number} {case.title}")
    for section in SECTIONS.values()
    for number, cases in section.items()
    for case in cases
]


@pytest.mark.parametrize(("number", "case"), NUMBERED)
def test_ends_as_the_table_says(number, case, tmp_path):
    outcome = run(case, tmp_path)
    assert row(number, case, outcome) in TABLE.read_text(encoding="utf-8").splitlines(), (
        f"docs/errors.md has no line {row(number, case, outcome)}; write it anew with python tools/make_errors.py"
    )
    assert "Traceback" not in outcome.err and not outcome.message.startswith("unexpected ")
    assert not set(outcome.err) & {"\r", "\x1b"}
    if case.call is None and outcome.status == "0":
        assert case.shows in outcome.out and outcome.out
    elif case.call is None:
        assert outcome.out == "" and outcome.status == str(case.status)
        assert case.closed_stdout or outcome.err.splitlines()[-1].startswith("prosparse: ")


def test_the_table_is_made_of_these_cases():
    titles = [case.title for case in CASES]
    assert len(set(titles)) == len(titles)
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    made = [line for line in document(dict.fromkeys(titles, Outcome("", ""))).splitlines() if line.startswith("|")]
    assert [line.split("|")[1:3] for line in rows] == [line.split("|")[1:3] for line in made]
    assert TABLE.read_text(encoding="utf-8").startswith(INTRODUCTION)
