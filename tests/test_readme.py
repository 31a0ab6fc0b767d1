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


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_its_python_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    exec(code[1].replace('prosparse.load("path/or/hub-id")', "prosparse.load()"), {})  # the packaged model
