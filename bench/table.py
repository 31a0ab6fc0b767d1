"""Rows for a person to read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from .row import Row

COLUMNS = (
    "mode", "activation\nsparsity", "tokens/s", "p10\nms", "median\nms", "read\nMB", "of\nfloor", "times dense\n(95 %)",
)  # fmt: skip


def render(rows: Sequence[Row]) -> Group:
    """One table per subject, model and format, and below them the circumstances they share."""
    groups = itertools.groupby(
        rows, key=lambda row: f"{row['subject']} {row['model'] or row['shape']}, {row['weights']}"
    )
    return Group(*(_table(title, list(group)) for title, group in groups), _legend(rows))


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["mode"],
            _or_dash(row["activation_sparsity"], "{:.1%}"),
            _or_dash(row["tokens_per_s"], "{:.1f}"),
            f"{row['p10_us'] / 1e3:.2f}",
            f"{row['median_us'] / 1e3:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
            _or_dash(row["fraction_of_floor"], "{:.0%}"),
            _ratio(row),
        )
    return table


def _ratio(row: Row) -> str:
    if row["dense_ratio"] is None:
        return "-"
    if row["mode"] == "dense":
        return "1"
    low, high = row["dense_ratio_95"]
    return f"{row['dense_ratio']:.2f} ({low:.2f}-{high:.2f})"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _legend(rows: Sequence[Row]) -> str:
    first = rows[0]
    speeds = [f"{speed:.1f}" for speed in sorted(row["bandwidth_gb_s"] for row in rows)]
    spread = speeds[0] if speeds[0] == speeds[-1] else f"{speeds[0]} to {speeds[-1]}"
    lines = [
        f"{first['machine']['processor']}, {first['threads']} threads, {first['versions']['kernels']}",
        f"memory reads {spread} GB/s in the same run",
        "tokens/s is the median's; times dense and floor compare p10; floor = MB / GB/s",
    ]
    if all(row["fraction_of_floor"] is None for row in rows):
        lines.append("no floor: a cache may hold all of these weights")
    load, cpus = first["machine"]["load_average"], first["machine"]["cpus"]
    if load > 1.2 * cpus:
        lines.append(f"this machine was busy (load {load} on {cpus} CPUs): it can do better than this")
    if any(row["synthetic"] for row in rows):
        lines.append("synthetic weights: a real shape, chosen activation sparsity, skew and overlap")
    return "\n".join([*lines, *sorted({row["note"] for row in rows if row["note"]})])
