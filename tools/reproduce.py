"""Write the tables of docs/reproduce.md anew, from what others published and the rows in bench/results.

python tools/reproduce.py           (bench/results/*.jsonl; the first row of a case is the one that is shown)

Published figures stand here with their source. Ours are never typed: a case without a row names the command instead.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from engine_rows import cases_table

ROOT = Path(__file__).parent.parent
DOCUMENT, RESULTS, PACKAGED = ROOT / "docs" / "reproduce.md", ROOT / "bench" / "results", "relu-llama-14m"
Rows = list[dict[str, Any]]
ONE, SEVEN, THIRTEEN = "minicpm-s-1b", "prosparse-llama-2-7b", "prosparse-llama-2-13b"

SPARSITY = [  # model, published on the mixed set, published on Wikipedia, how to measure it
    ("ReluLLaMA-7B", 66.98, 67.16, "./ReluLLaMA-7B"),
    ("ProSparse-LLaMA-2-7B, before the threshold", 88.11, 83.30, "./prosparse-llama-2-7b --fatrelu-threshold 0"),
    ("ProSparse-LLaMA-2-7B", 89.32, 84.33, "./prosparse-llama-2-7b"),
    ("ReluLLaMA-13B", 71.56, 71.45, "./ReluLLaMA-13B"),
    ("ProSparse-LLaMA-2-13B, before the threshold", 87.97, 81.64, "./prosparse-llama-2-13b --fatrelu-threshold 0"),
    ("ProSparse-LLaMA-2-13B", 88.80, 83.65, "./prosparse-llama-2-13b"),
    ("MiniCPM-S-1B, before the threshold", 86.25, 82.72, "./MiniCPM-S-1B-sft --fatrelu-threshold 0"),
    ("MiniCPM-S-1B", 87.89, 84.71, "./MiniCPM-S-1B-sft"),
]
STEPS = [  # model, zeros, microseconds of step 2 and step 3 dense, and sparse
    ("ReluLLaMA-7B", 66.98, (90.55, 82.92), (67.12, 63.00)),
    ("ProSparse-LLaMA-2-7B, before the threshold", 88.11, (90.55, 82.92), (46.66, 55.56)),
    ("ProSparse-LLaMA-2-7B", 89.32, (90.55, 82.92), (45.38, 55.05)),
    ("ReluLLaMA-13B", 71.56, (131.36, 113.68), (69.92, 75.47)),
    ("ProSparse-LLaMA-2-13B, before the threshold", 87.97, (131.36, 113.68), (55.29, 67.50)),
    ("ProSparse-LLaMA-2-13B", 88.80, (131.36, 113.68), (53.78, 66.73)),
]
# who, what, on what, dense -> sparse, source; and our nearest: shape, zeros, formats
SPEEDS = [
    (
        "ProSparse",
        "ReluLLaMA-7B, 67 % zeros",
        "PowerInfer on an A100 and CPUs, against llama.cpp dense",
        "3.67 to 11.37 tokens/s, 3.10 x",
        "P",
        ("relullama-7b", 0.67, ("int8", "int4")),
    ),
    (
        "ProSparse",
        "ProSparse-7B, 88 % zeros",
        "the same",
        "3.67 to 16.30 tokens/s, 4.44 x",
        "P",
        (SEVEN, 0.89, ("bf16", "int8", "int4")),
    ),
    (
        "ProSparse",
        "ProSparse-13B, 88 % zeros",
        "the same",
        "1.92 to 8.67 tokens/s, 4.52 x",
        "P",
        (THIRTEEN, 0.89, ("int8", "int4")),
    ),
    (
        "MiniCPM",
        "MiniCPM-S-1B",
        "PowerInfer, conditions not given",
        "about 2.8 x",
        "M",
        (ONE, 0.88, ("bf16", "int8", "int4")),
    ),
    (
        "PowerInfer",
        "ReluLLaMA-7B, fp16, CPU alone",
        "i9-13900K, 67 GB/s, against llama.cpp",
        "5.17 to 8.21 tokens/s, 1.59 x",
        "R",
        ("relullama-7b", 0.67, ("bf16",)),
    ),
    (
        "PowerInfer",
        "Falcon-40B, fp16, the largest gain",
        "RTX 4090 (the model does not fit), against llama.cpp",
        "11.69 x",
        "I",
        None,
    ),
    (
        "PowerInfer",
        "mean of its models, fp16",
        "RTX 4090, i9-13900K, against llama.cpp",
        "8.32 tokens/s, 7.23 x",
        "I",
        None,
    ),
    ("PowerInfer", "mean of its models, int4", "the same", "13.20 tokens/s (29.08 at most), 2.89 x", "I", None),
    (
        "PowerInfer",
        "Bamboo-7B, fp16, fits the GPU",
        "RTX 4090",
        "18.54 to 11.85 ms, 1.56 x",
        "I",
        ("bamboo-7b", 0.9, ("int8",)),
    ),
    (
        "SparseInfer",
        "ReLU-fied models, sign predictor",
        "Jetson Orin, against llama.cpp",
        "about 1.6 to 1.8 x; 1.21 x PowerInfer",
        "S",
        None,
    ),
    (
        "TurboSparse",
        "Mistral-7B, fp16, 90 % zeros, CPU alone",
        "against its dense",
        "4.78 to 9.94 tokens/s, 2.08 x",
        "T",
        ("turbosparse-mistral-7b", 0.9, ("int8",)),
    ),
]


def sparsity_table(rows: Rows) -> str:
    lines = ["| model | published: mixed | Wikipedia | ours | command |", "|---|---|---|---|---|"]
    for model, mixed, wikipedia, arguments in SPARSITY:
        command = f"`prosparse measure {arguments} --text F`"
        lines.append(f"| {model} | {mixed:.2f} % | {wikipedia:.2f} % | not run: its weights are not here | {command} |")
    card = f"[its card](../prosparse/assets/{PACKAGED}/README.md), measured again by the tests"
    return "\n".join([*lines, f"| {PACKAGED}, packaged | - | - | {card} | `prosparse measure` |"])


def steps_table(rows: Rows) -> str:
    lines = [
        "| model | zeros | step 2: up, us | step 3: down, us | both | with a dense step 1 of the mean of the two |",
        "|---|---|---|---|---|---|",
    ]
    for model, zeros, dense, sparse in STEPS:
        second, third = (f"{d:.2f} to {s:.2f}, {d / s:.2f} x" for d, s in zip(dense, sparse, strict=True))
        both, gate = sum(dense) / sum(sparse), sum(dense) / 2
        whole = (gate + sum(dense)) / (gate + sum(sparse))
        lines.append(f"| {model} | {zeros:.2f} % | {second} | {third} | {both:.2f} x | {whole:.2f} x |")
    return "\n".join(lines)


def ffn_table(rows: Rows) -> str:
    """Whole FFNs, ours, at the published zeros nearest to a case."""
    lines = ["| shape | weights | zeros | dense, us | exact, us | times dense (95 %) |", "|---|---|---|---|---|---|"]
    for shape, sparsities in ((ONE, (0.7, 0.88, 0.95)), (SEVEN, (0.7, 0.88))):
        for weights in ("bf16", "int8", "int4"):
            for zeros in sparsities:
                found = [row for row in rows if row["subject"] == "ffn" and _is(row, shape, weights, zeros)]
                if pair := _pair(found):
                    dense, exact = pair
                    ratio = f"{exact['dense_ratio']:.2f} ({_range(exact)})"
                    times = f"{dense['median_us']:.0f} | {exact['median_us']:.0f}"
                    lines.append(f"| {shape} | {weights} | {zeros:.0%} | {times} | {ratio} |".replace("%", " %", 1))
    return "\n".join(lines)


def speeds_table(rows: Rows) -> str:
    lines = ["| claim | model | on | published | ours |", "|---|---|---|---|---|"]
    for who, what, where, figure, source, nearest in SPEEDS:
        lines.append(f"| {who} [{source}] | {what} | {where} | {figure} | {_nearest(rows, nearest)} |")
    return "\n".join(lines)


def _nearest(rows: Rows, nearest: tuple[str, float, tuple[str, ...]] | None) -> str:
    if nearest is None:
        return "no such machine or model here"
    shape, zeros, formats = nearest
    found = []
    for weights in formats:
        own = [
            row
            for row in rows
            if row["subject"] == "decode"
            and row["batch"] == 1
            and not row.get("alone")
            and _is(row, shape, weights, zeros)
        ]
        if pair := _pair(own):
            dense, exact = pair
            found.append(
                f"{weights}: {dense['tokens_per_s']:.1f} to {exact['tokens_per_s']:.1f} tokens/s, "
                f"{exact['dense_ratio']:.2f} x ({_range(exact)})"
            )
    if found:
        return "; ".join(found)
    return f"not run: `prosparse bench --shape {shape} --sparsity {zeros} --weights {','.join(formats)}`"


def _is(row: dict[str, Any], shape: str, weights: str, zeros: float) -> bool:
    asked = (row["synthetic"] or {}).get("activation_sparsity")
    return (row["shape"], row["weights"], asked) == (shape, weights, zeros)


def _pair(rows: Rows) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The first dense and the first exact row."""
    modes = [next((row for row in rows if row["mode"] == mode), None) for mode in ("dense", "exact")]
    return (modes[0], modes[1]) if modes[0] and modes[1] else None


def _range(row: dict[str, Any]) -> str:
    low, high = row["dense_ratio_95"]
    return f"{low:.2f}-{high:.2f}"


TABLES = {
    "sparsity": sparsity_table,
    "steps": steps_table,
    "ffn": ffn_table,
    "speeds": speeds_table,
    "engines": cases_table,
}


def filled(document: str, rows: Rows) -> str:
    """The document with every table between its marks made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: python tools/reproduce.py -->\n", f"\n<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{begin}\n{table(rows)}\n{end}"
        document, count = pattern.subn(text.replace("\\", r"\\"), document)
        assert count == 1, f"docs/reproduce.md must have the marks of {name} once"
    return document


def read_rows() -> Rows:
    return [json.loads(line) for path in sorted(RESULTS.glob("*.jsonl")) for line in path.open(encoding="utf-8")]


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8"), read_rows()), encoding="utf-8")
    sys.stdout.write(f"wrote {DOCUMENT.relative_to(ROOT)}\n")
