"""What the rows of bench/results claim about themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prosparse.config.shapes import SHAPES, shape
from prosparse.kernels.weight import bytes_per_row
from prosparse.weights.names import expected_shapes, is_down
from prosparse.weights.tables import names_of

RESULTS = Path(__file__).parents[2] / "bench" / "results"
ROWS = [json.loads(line) for path in sorted(RESULTS.glob("*.jsonl")) for line in path.read_text().splitlines()]
INT4_TOKENS = [row for row in ROWS if row["subject"] == "decode" and row["weights"] == "int4" and row["shape"]]


def test_a_row_named_int4_reads_int4():
    """At least 95 % of a token's bytes: all but the cache, which is taken for full here."""
    assert INT4_TOKENS
    for row in INT4_TOKENS:
        config = shape(row["shape"])
        cache = row["context"] * row["layers"] * 2 * config.kv_heads * config.head_dim * 2  # keys and values in bf16
        assert 1 - cache / row["bytes"] >= 0.95, (row["shape"], row["mode"], row["date"])


@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith("tiny")])
def test_a_model_named_int4_is_int4(name):
    """At least 95 % of its bytes in memory; the rest are norms."""
    config = shape(name)
    int4 = rest = 0
    for tensor, size in expected_shapes(config).items():
        if len(size) == 1:
            rest += 4 * size[0]
        else:
            rows, columns = reversed(size) if is_down(names_of(config), tensor) else size
            int4 += rows * bytes_per_row("int4", columns)
    assert int4 / (int4 + rest) >= 0.95


def test_the_page_of_hybrid_decoding_tells_its_rows():
    page = (RESULTS.parents[1] / "docs" / "hybrid.md").read_text()
    told = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| exact | ", "| predicted | "))
    ]
    shapes = [("prosparse-llama-2-7b", "bf16"), ("prosparse-llama-2-13b", "bf16"), ("relullama-70b", "int4")]
    rows = [row for row in ROWS if row["subject"] == "hybrid" and (row["shape"], row["weights"]) in shapes]
    expected: dict[tuple[str, ...], list[str]] = {}
    for row in sorted(rows, key=lambda row: row["part"] != "synthetic curves"):
        split = row["simulated"]["layer_split_tokens_per_s"]
        numbers = [f"{row['tokens_per_s']:.1f}", f"{split:.1f}", f"{row['dense_ratio']:.2f}"]
        key = row["shape"], row["mode"], row["device"].removeprefix("simulated ")
        expected[key] = expected.get(key, []) + numbers
    each = len(told) // len(shapes)
    found = {(shapes[i // each][0], *line[:2]): line[2:] for i, line in enumerate(told)}
    assert found == expected
