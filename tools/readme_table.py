"""The README's table of measured numbers, from the rows in bench/results: python tools/readme_table.py

Speeds are medians; "times dense" and "of the floor" compare fast deciles of one interleaved run (see bench/clock.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent.parent / "bench" / "results" / "cpu-2core-zen4.jsonl"
SHOWN = [  # subject, shape, asked activation sparsity, the rows' name for a person
    ("decode", "minicpm-s-1b", 0.88, "a token of MiniCPM-S-1B's shape"),
    ("decode", "prosparse-llama-2-7b", 0.89, "a token of ProSparse-LLaMA-2-7B's shape"),
    ("ffn", "minicpm-s-1b", 0.88, "one FFN of MiniCPM-S-1B's shape"),
    ("ffn", "minicpm-s-1b", 0.95, "one FFN of MiniCPM-S-1B's shape"),
]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per entry of `SHOWN`."""
    lines = ["| bf16 | zeros | dense | exact | times dense (95 %) | of the floor |", "|---|---|---|---|---|---|"]
    for subject, shape, sparsity, name in SHOWN:
        found = [r for r in rows if (r["subject"], r["shape"], r["weights"]) == (subject, shape, "bf16")]
        dense, exact = (
            next(r for r in found if r["mode"] == mode and r["synthetic"]["activation_sparsity"] == sparsity)
            for mode in ("dense", "exact")
        )
        low, high = exact["dense_ratio_95"]
        lines.append(
            f"| {name} | {exact['activation_sparsity']:.0%} | {_speed(dense)} | {_speed(exact)} | "
            f"{exact['dense_ratio']:.2f} ({low:.2f}-{high:.2f}) | {exact['fraction_of_floor']:.0%} |"
        )
    return "\n".join(lines)


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_s']:.1f} tokens/s" if row["tokens_per_s"] else f"{row['median_us'] / 1e3:.2f} ms"


if __name__ == "__main__":
    with ROWS.open() as file:
        sys.stdout.write(table([json.loads(line) for line in file]) + "\n")
