"""The notebooks run from top to bottom, and are what a viewer expects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
OUTPUTS = {
    "stream": {"output_type", "name", "text"},
    "display_data": {"output_type", "data", "metadata"},
    "execute_result": {"output_type", "data", "metadata", "execution_count"},
}


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_file_is_nbformat_4(path):
    """As its schema says; and that it was run from top to bottom, without an error."""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["nbformat"] == 4 and document["nbformat_minor"] >= 5
    assert document["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids) and all(0 < len(name) <= 64 for name in ids)
    count = 0
    for cell in document["cells"]:
        assert isinstance(cell["metadata"], dict) and isinstance(cell["source"], list)
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "markdown":
            assert cell.keys() == {"cell_type", "id", "metadata", "source"}
            continue
        assert cell["cell_type"] == "code"
        assert cell.keys() == {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}
        count += 1
        assert cell["execution_count"] == count, "run python tools/run_notebook.py"
        for output in cell["outputs"]:
            assert output.keys() == OUTPUTS[output["output_type"]]
    assert len(document["cells"]) == 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    tool = [sys.executable, str(ROOT / "tools" / "run_notebook.py"), "--check", str(path)]
    before = path.read_bytes()
    result = subprocess.run(tool, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert path.read_bytes() == before
