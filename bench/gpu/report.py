"""The rows of a check as lines of text, short enough for the end of a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = "{:34} {:20} {:7} {:>5} {:>9} {:>6} {:>8} {:>6}\n".format(
    "what", "mode", "weights", "zeros", "p10 us", "GB/s", "of floor", "ratio"
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row: ratio is the base's time over this one's, by p10."""
    return HEAD + "".join(map(line, rows)) if rows else "no rows\n"


def line(row: Mapping[str, Any]) -> str:
    size = {"minicpm-s-1b": "1B", "prosparse-llama-2-7b": "7B", "prosparse-llama-2-13b": "13B"}.get(row["shape"])
    parts = [row["subject"], row["part"], size or row["shape"]]
    if row["subject"] == "attend":
        parts.append(str(row["context"]))
    if row["subject"] == "decode" and row["note"]:
        short = row["note"].replace("one CUDA graph a token", "graph").replace(", launches overlap", " overlap")
        parts.append(short.split(",")[0])
    what = " ".join(filter(None, parts))
    zeros = "" if row["activation_sparsity"] is None else f"{row['activation_sparsity']:.0%}"
    ratio = "" if row["dense_ratio"] is None else f"{row['dense_ratio']:.2f}"
    speed = "" if not row["bytes"] else f"{row['bytes'] / row['p10_us'] / 1e3:.0f}"
    share = "" if not row["bytes"] else f"{row['fraction_of_floor']:.0%}"
    more = row["note"] or "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f} tokens/s"
    if row["joules_per_token"] is not None:
        more += f", {row['joules_per_token']:.3f} J"
    if row["simulated"] is not None:
        more += f", simulated {row['simulated']['tokens_per_s']:.0f}, {row['note'].split(', ')[-1]}"
    return (
        f"{what:34.34} {row['mode']:20} {row['weights'] or '':7} {zeros:>5} {row['p10_us']:9.1f} {speed:>6} {share:>8} "
        f"{ratio:>6}  {more}\n"
    )
