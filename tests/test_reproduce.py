"""docs/reproduce.md says what the rows say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from prosparse.bench.cases import CASES, subjects

ROOT = Path(__file__).parent.parent
TOOL = runpy.run_path(str(ROOT / "tools" / "reproduce.py"))
TEXT = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_rows():
    assert TOOL["filled"](TEXT, TOOL["read_rows"]()) == TEXT, "run python tools/reproduce.py"


def test_every_source_is_listed():
    cited = set(re.findall(r"\[([A-Z])\]", TEXT.split("## Sources")[0]))
    listed = set(re.findall(r"^- \[([A-Z])\]", TEXT, re.MULTILINE))
    assert cited == listed


def test_a_new_row_takes_the_place_of_a_command():
    rows = TOOL["read_rows"]()
    command = "not run: `prosparse bench --shape prosparse-llama-2-13b"
    assert command in TOOL["speeds_table"](rows)
    new = [{**row, "shape": "prosparse-llama-2-13b"} for row in rows if row["shape"] == "prosparse-llama-2-7b"]
    assert new and command not in TOOL["speeds_table"](rows + new)
    assert "not run" in TOOL["speeds_table"]([]) and json.dumps(rows)


def test_runs_with_other_engines_are_in_a_table_of_their_own():
    rows, speeds = TOOL["read_rows"](), TOOL["speeds_table"](TOOL["read_rows"]())
    ours = [row for row in rows if row["subject"] == "decode" and row["weights"] == "int8" and row["batch"] == 1][:2]
    run = [{**row, "run": "x", "alone": {"median_us": 1.0}, "tokens_per_s": 77.7} for row in ours]
    run.append({**run[0], "mode": "llama-cpp", "weights": "Q8_0", "tokens_per_s": 15.2})
    assert TOOL["speeds_table"](run + rows) == speeds
    table = TOOL["cases_table"](run)
    assert "prosparse, dense int8 77.7; prosparse, exact int8 77.7; llama.cpp Q8_0 15.2 |" in table
    assert table.count("not run: `GLIBC_TUNABLES") == 3
    names = re.findall(r"^\| (engines-\S+) \|", table, re.MULTILINE)
    assert names == [name for name in CASES if name.startswith("engines")]


@pytest.mark.parametrize("name", ["reproduce.md", "benchmarks.md"])
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / name).read_text(encoding="utf-8"))
    assert targets and not [target for target in targets if not (ROOT / "docs" / target).exists()]


def test_every_case_has_its_subject_described():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(subjects()), "a line for each subject"
