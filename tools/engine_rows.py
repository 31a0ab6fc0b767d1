"""Rows of runs in which other engines took turns with ours, as the tables of README.md and docs/reproduce.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
FILE = "cpu-2core-zen4-engines.jsonl"
NAMES = {
    "dense": "prosparse, dense",
    "exact": "prosparse, exact",
    "llama-cpp": "llama.cpp",
    "llama-cpp-fp16": "llama.cpp",
    "transformers-eager": "transformers, eager",
    "transformers-compile": "transformers, torch.compile",
}
LLAMA_CPP = "`pip install llama-cpp-python`, which compiles llama.cpp for the machine it is on"
CASES = {  # name: our format, another engine of the run, what must be installed
    "engines-1b-transformers-bf16": ("bf16", "transformers-eager", "nothing more; torch.compile needs a C++ compiler"),
    "engines-1b-llama-cpp-bf16": ("bf16", "llama-cpp", LLAMA_CPP),
    "engines-1b-llama-cpp-int8": ("int8", "llama-cpp", LLAMA_CPP),
    "engines-1b-llama-cpp-int4": ("int4", "llama-cpp", LLAMA_CPP),
}
COMMAND = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m prosparse.bench --only"


def engines_table(rows: list[Row]) -> str:
    """Markdown, one line per engine and run; nothing where no such run was kept."""
    lines = [
        "| a token, MiniCPM-S-1B's shape | weights | tokens/s | alone | times our dense (95 %) | of the floor |",
        "|---|---|---|---|---|---|",
    ]
    for run in _of_each_case(rows):
        for row in run:
            low, high = row["dense_ratio_95"]
            ratio = "1" if low == high == 1 else f"{row['dense_ratio']:.2f} ({low:.2f}-{high:.2f})"
            lines.append(
                f"| {NAMES[row['mode']]} | {row['weights']} | {row['tokens_per_s']:.1f} | "
                f"{1e6 / row['alone']['median_us']:.1f} | {ratio} | {row['fraction_of_floor']:.0%} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def cases_table(rows: list[Row]) -> str:
    """Markdown, one line per case: what it needs, and its speeds or the command."""
    lines = ["| case | needs | tokens/s in turns |", "|---|---|---|"]
    for (case, (_, _, needs)), run in zip(CASES.items(), _of_each_case(rows), strict=True):
        speeds = [f"{NAMES[row['mode']]} {row['weights']} {row['tokens_per_s']:.1f}" for row in run]
        lines.append(f"| {case} | {needs} | {'; '.join(speeds) or f'not run: `{COMMAND} {case}`'} |")
    return "\n".join(lines)


def _of_each_case(rows: list[Row]) -> Iterator[list[Row]]:
    """For each case the rows of its first run; none where it was not run."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("alone"):
            runs.setdefault(row["run"], []).append(row)
    for weights, other, _ in CASES.values():
        of_case = (
            run for run in runs.values() if run[0]["weights"] == weights and other in {row["mode"] for row in run}
        )
        yield next(of_case, [])
