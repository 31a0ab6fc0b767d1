"""Run a notebook's code cells in order and keep what they print and draw: python tools/run_notebook.py NOTEBOOK..

It needs no Jupyter: cells share one namespace, as in a kernel; a figure that a cell leaves open becomes its picture,
and a semicolon at its end hides its value. With --check the files stay as they are, and only an exception in a cell is
a failure.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

PIXELS_PER_INCH = 110


def run_notebook(document: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of this run."""
    import matplotlib

    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in document["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        cell["execution_count"] = number
        cell["outputs"] = _run("".join(cell["source"]), names, number)
    return document


def _run(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    import matplotlib.pyplot as plt

    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    value = None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if out.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": out.getvalue().splitlines(keepends=True)})
    for figure in map(plt.figure, plt.get_fignums()):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=PIXELS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    if value is not None and not source.rstrip().endswith(";"):
        data = {"text/plain": [repr(value)]}
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    for path in args.notebooks:
        document = run_notebook(json.loads(path.read_text(encoding="utf-8")))
        if not args.check:
            path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.stdout.write(f"{path}: ran\n")


if __name__ == "__main__":
    main()
