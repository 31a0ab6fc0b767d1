"""The README's tables of measured numbers, from the rows in bench/results: python tools/readme_table.py

It prints those of our own modes, and writes the block of other engines into README.md, which is empty as long as
bench/results has no rows of a run with them (bench/results/cpu-2core-zen4-engines.jsonl, `docs/benchmarks.md`).
Speeds are medians; "times dense" and "of the floor" compare fast deciles of one interleaved run (see bench/clock.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine_rows import FILE, engines_table

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "bench" / "results" / "cpu-2core-zen4.jsonl"
ENGINES = ROWS.with_name(FILE)
LOOKUP = ROWS.with_name("cpu-2core-zen4-lookup.jsonl")
BEGIN, END = "<!-- other engines: python tools/readme_table.py -->\n", "<!-- end of other engines -->\n"
INTRODUCTION = """
Beside other engines, with the same sizes and tokens, in turns of eight tokens of one run (`--only engines`; llama.cpp
computes another function over the same bytes, [docs/reproduce.md](docs/reproduce.md)):

"""
ONE, SEVEN = "MiniCPM-S-1B's shape", "ProSparse-LLaMA-2-7B's shape"
SHOWN = [  # subject, shape, format, asked activation sparsity, the rows' name for a person
    ("decode", "minicpm-s-1b", "bf16", 0.88, f"a token, {ONE}"),
    ("decode", "minicpm-s-1b", "int8", 0.88, f"a token, {ONE}"),
    ("decode", "minicpm-s-1b", "int4", 0.88, f"a token, {ONE}"),
    ("decode", "prosparse-llama-2-7b", "int8", 0.89, f"a token, {SEVEN}"),
    ("decode", "prosparse-llama-2-7b", "int4", 0.89, f"a token, {SEVEN}"),
    ("ffn", "minicpm-s-1b", "bf16", 0.88, f"one FFN, {ONE}"),
    ("ffn", "minicpm-s-1b", "int8", 0.88, f"one FFN, {ONE}"),
    ("ffn", "minicpm-s-1b", "int4", 0.88, f"one FFN, {ONE}"),
]
SELECTORS = {
    "low_rank": "rank 256, int8 and int4",
    "low_bit_gate": "the gate in int4",
    "oracle": "oracle at the price of sign bits: a bound",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per entry of `SHOWN`."""
    lines = [
        "| what | weights | zeros | dense | exact | times dense (95 %) | of the floor: dense, exact |",
        "|---|---|---|---|---|---|---|",
    ]
    for subject, shape, weights, sparsity, name in SHOWN:
        found = [r for r in rows if (r["subject"], r["shape"], r["weights"]) == (subject, shape, weights)]
        dense, exact = (
            next(r for r in found if r["mode"] == mode and r["synthetic"]["activation_sparsity"] == sparsity)
            for mode in ("dense", "exact")
        )
        low, high = exact["dense_ratio_95"]
        lines.append(
            f"| {name} | {weights} | {exact['activation_sparsity']:.0%} | {_speed(dense)} | {_speed(exact)} | "
            f"{exact['dense_ratio']:.2f} ({low:.2f}-{high:.2f}) | "
            f"{dense['fraction_of_floor']:.0%}, {exact['fraction_of_floor']:.0%} |"
        )
    return "\n".join(lines)


def lookup_line(rows: list[dict[str, Any]]) -> str:
    """What prompt lookup is worth, by format."""
    parts = []
    for weights in ("bf16", "int8", "int4"):
        speed = {row["part"]: row["tokens_per_s"] for row in rows if row["weights"] == weights}
        some = [f"{speed[f'drafts {right}% right']:.1f}" for right in (0, 50, 75, 100)]
        parts.append(f"{weights} {', '.join(some)} against {speed['no drafts']:.1f}")
    return "; ".join(parts)


def predicted_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per selector and format that was timed."""
    lines = [
        "| a token, MiniCPM-S-1B's shape | weights | recall | predicted | tokens/s | times exact (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["subject"] == "predictors" and row["mode"] == "predicted":
            quality = row["quality"]
            low, high = quality["exact_ratio_95"]
            lines.append(
                f"| {SELECTORS[row['part']]} | {row['weights']} | {quality['recall']:.1%} | "
                f"{1 - row['predicted_sparsity']:.1%} | {row['tokens_per_s']:.1f} | "
                f"{quality['exact_ratio']:.2f} ({low:.2f}-{high:.2f}) |"
            )
    return "\n".join(lines)


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_s']:.1f} tokens/s" if row["tokens_per_s"] else f"{row['median_us'] / 1e3:.2f} ms"


def filled(readme: str, rows: list[dict[str, Any]]) -> str:
    """The README with the block of other engines made anew."""
    before, found, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found and ended, f"README.md must have the lines {BEGIN!r} and {END!r}"
    made = engines_table(rows)
    return before + BEGIN + (f"{INTRODUCTION}{made}\n\n" if made else "") + END + after


def read(path: Path) -> list[dict[str, Any]]:
    """Its rows; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    found, readme = read(ROWS), ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), read(ENGINES)), encoding="utf-8")
    sys.stdout.write(f"{table(found)}\n\n{predicted_table(found)}\n")
