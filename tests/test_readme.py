"""The README says what the repository shows."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_rows():
    tool = runpy.run_path(str(ROOT / "tools" / "readme_table.py"))
    rows = [json.loads(line) for line in tool["ROWS"].read_text().splitlines()]
    for made in (tool["table"](rows), tool["predicted_table"](rows)):
        assert made in README, "run python tools/readme_table.py and put its tables into README.md"
    speeds = [row["bandwidth_gb_s"] for row in rows]
    assert f"({min(speeds):.0f} to {max(speeds):.0f} GB/s)" in README


def test_what_prompt_lookup_is_worth_is_that_of_the_rows():
    tool = runpy.run_path(str(ROOT / "tools" / "readme_table.py"))
    line = tool["lookup_line"](tool["read"](tool["LOOKUP"]))
    assert line in " ".join(README.split()), f"write {line!r} into README.md"


def test_the_block_of_other_engines_is_there_where_rows_are(tmp_path):
    tool = runpy.run_path(str(ROOT / "tools" / "readme_table.py"))
    assert tool["filled"](README, tool["read"](tool["ENGINES"])) == README, "run python tools/readme_table.py"
    begin, end = tool["BEGIN"], tool["END"]
    assert begin + end in tool["filled"](README, tool["read"](tmp_path / "absent.jsonl"))
    common = {"run": "a", "alone": {"median_us": 5e4}, "fraction_of_floor": 0.6, "dense_ratio_95": [0.8, 0.9]}
    rows = [
        {**common, "mode": "dense", "weights": "int8", "tokens_per_s": 18.5, "dense_ratio_95": [1.0, 1.0]},
        {**common, "mode": "llama-cpp", "weights": "Q8_0", "tokens_per_s": 15.2, "dense_ratio": 0.84},
    ]
    again = [{**row, "run": "b", "tokens_per_s": 1.0} for row in rows]
    block = tool["filled"](README, [*rows, *again]).split(begin)[1].split(end)[0]
    assert "| prosparse, dense | int8 | 18.5 | 20.0 | 1 | 60% |\n" in block
    assert block.endswith("| llama.cpp | Q8_0 | 15.2 | 20.0 | 0.84 (0.80-0.90) | 60% |\n\n")


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_its_python_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    exec(code[1].replace('prosparse.load("path/or/hub-id")', "prosparse.load()"), {})  # the packaged model
