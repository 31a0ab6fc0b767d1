"""Rows for a person to read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from .row import Row

TEXTS = ("op", "prompt", "mode", "weights", "machine", "frequencies")
Column = tuple[str, Callable[[Row], str]]


def render(rows: Sequence[Row]) -> Group:
    """One table per subject, model, format and batch, and below them the circumstances they share."""
    groups = [list(group) for _, group in itertools.groupby(rows, key=_title)]
    return Group(*(_table(_title(group[0]), group) for group in groups), _legend(rows))


def _title(row: Row) -> str:
    """Of the table that a row stands in: rows of ops share one, like those of formats whose quality is compared."""
    if row["subject"] == "quality":
        return f"quality {row['model']}"
    of = row["model"] or row["shape"]
    if row["subject"] == "hybrid":
        return f"hybrid {of}, {row['weights']}, simulated"
    if row["layers"] == 1 and row["subject"] not in ("ffn", "adaptive") or row["subject"] == "decode_layers":
        return f"ops {of}"
    batch = f", {row['batch']} sequences" if row["batch"] > 1 else ""
    weights = "" if row["subject"] in ("prefill", "load") or row.get("alone") else f", {row['weights']}"
    return f"{row['subject']} {of}{weights}{batch}"


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
    subject = "engines" if rows[0].get("alone") else title.split()[0]
    columns = _columns(subject)
    for name, _ in columns:
        table.add_column(name, justify="left" if name in TEXTS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def _columns(subject: str) -> list[Column]:
    if subject == "quality":
        return [
            ("weights", lambda row: row["weights"] + (f", {row['part']}" if row["part"] else "")),
            ("mode", lambda row: row["mode"]),
            ("activation\nsparsity", lambda row: _or_dash(row["activation_sparsity"], "{:.1%}")),
            ("perplexity\nratio", lambda row: f"{row['quality']['perplexity_ratio'][0]:.4f}"),
            ("KL (95 %)\n1e-4 nats", lambda row: _interval(row["quality"]["kl_divergence"], 1e4)),
            ("top-1 the\nsame", lambda row: f"{row['quality']['top1_agreement'][0]:.2%}"),
        ]
    if subject == "hybrid":
        return [
            ("mode", lambda row: row["mode"]),
            ("machine", lambda row: row["device"].removeprefix("simulated ")),
            ("frequencies", lambda row: row["part"].split()[0]),
            ("tokens/s", lambda row: f"{row['tokens_per_s']:.1f}"),
            ("layer\nsplit", lambda row: f"{row['simulated']['layer_split_tokens_per_s']:.1f}"),
            ("times layer\nsplit", lambda row: f"{row['dense_ratio']:.2f}"),
            ("bound", lambda row: f"{row['simulated']['bound_tokens_per_s']:.1f}"),
        ]
    weights: Column = ("weights", lambda row: row["weights"])
    if subject == "load":
        return [
            weights,
            ("MB", lambda row: f"{row['bytes'] / 1e6:.0f}"),
            ("read\nms", lambda row: f"{row['loading']['read_ms']:.0f}"),
            ("load\nms", lambda row: f"{row['loading']['load_ms']:.0f}"),
            ("times\nread", lambda row: f"{row['loading']['times_read']:.1f}"),
            ("quantised\nGB/s", lambda row: _or_dash(row["loading"]["quantised_gb_s"], "{:.2f}")),
            ("first token, ms\n16 tokens", lambda row: f"{row['loading']['ttft_16_ms']:.0f}"),
            ("\n512 tokens", lambda row: f"{row['loading']['ttft_512_ms']:.0f}"),
            ("memory / weights\nand cache", lambda row: f"{row['loading']['times_weights_and_cache']:.2f}"),
        ]
    floor: Column = ("of\nfloor", lambda row: _or_dash(row["fraction_of_floor"], "{:.0%}"))
    read: Column = ("read\nMB", lambda row: f"{row['bytes'] / 1e6:.1f}")
    if subject == "ops":
        return [
            ("op", lambda row: " ".join(filter(None, [row["subject"], row["part"]]))),
            weights,
            ("mode", lambda row: row["mode"]),
            ("zeros", lambda row: _or_dash(row["activation_sparsity"], "{:.0%}")),
            ("p10\nms", lambda row: _ms(row["p10_us"])),
            read,
            floor,
            ("times base\n(95 %)", _ratio),
        ]
    prompt: list[Column] = [("prompt", lambda row: row["part"]), weights]
    zeros: list[Column] = [("activation\nsparsity", lambda row: _or_dash(row["activation_sparsity"], "{:.1%}"))]
    alone: list[Column] = [("\nalone", lambda row: f"{1e6 / row['alone']['median_us']:.1f}")]
    if subject == "predictors":
        return [
            ("mode", lambda row: row["part"] or row["mode"]),
            ("named", lambda row: _or_dash(row["predicted_sparsity"] and 1 - row["predicted_sparsity"], "{:.1%}")),
            ("recall", lambda row: _or_dash(row["quality"] and row["quality"]["recall"], "{:.1%}")),
            ("tokens/s", lambda row: f"{row['tokens_per_s']:.1f}"),
            read,
            floor,
            ("times\nexact", lambda row: _or_dash(row["quality"] and row["quality"]["exact_ratio"], "{:.2f}")),
            ("times base\n(95 %)", _ratio),
        ]
    if subject == "lookup":
        return [
            ("mode", lambda row: row["part"]),
            *zeros,
            ("tokens/s", lambda row: _or_dash(row["tokens_per_s"], "{:.1f}")),
            ("p10\nms", lambda row: _ms(row["p10_us"])),
            ("median\nms", lambda row: _ms(row["median_us"])),
            floor,
            ("tried", lambda row: _or_dash(row["quality"] and row["quality"].get("drafted"), "{}")),
            ("came", lambda row: _or_dash(row["quality"] and row["quality"].get("accepted"), "{}")),
            ("times base\n(95 %)", _ratio),
        ]
    if subject == "generate":
        return [
            ("mode", lambda row: row["part"]),
            *zeros,
            ("tokens/s", lambda row: f"{row['tokens_per_s']:.1f}"),
            ("median\nms", lambda row: _ms(row["median_us"])),
            ("times base\n(95 %)", _ratio),
            ("Amdahl's\nlimit", lambda row: _or_dash(row["quality"] and row["quality"]["amdahl_limit"], "{:.2f}")),
            ("reached", lambda row: _or_dash(row["quality"] and row["quality"]["fraction_of_limit"], "{:.0%}")),
        ]
    return [
        *(prompt if subject == "prefill" else []),
        ("mode", lambda row: f"exact, {row['part']}" if subject == "adaptive" and row["part"] else row["mode"]),
        *([weights] if subject == "engines" else []),
        *(zeros if subject != "prefill" else []),
        ("tokens/s", lambda row: _or_dash(row["tokens_per_s"], "{:.1f}")),
        *(alone if subject == "engines" else []),
        ("p10\nms", lambda row: _ms(row["p10_us"])),
        ("median\nms", lambda row: _ms(row["median_us"])),
        read,
        floor,
        ("times GEMMs\n(95 %)" if subject == "prefill" else "times base\n(95 %)", _ratio),
    ]


def _ms(us: float) -> str:
    return f"{us / 1e3:.2f}" if us >= 100 else f"{us / 1e3:.4f}"


def _ratio(row: Row) -> str:
    if row["dense_ratio"] is None:
        return "-"
    if row["dense_ratio_95"] == [1.0, 1.0]:
        return "1"
    low, high = row["dense_ratio_95"]
    return f"{row['dense_ratio']:.2f} ({low:.2f}-{high:.2f})"


def _interval(values: Sequence[float | None], factor: float) -> str:
    value, low, high = (None if number is None else number * factor for number in values)
    return f"{value:.2f}" + (f" ({low:.2f}-{high:.2f})" if low is not None else "")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _legend(rows: Sequence[Row]) -> str:
    first = rows[0]
    if all(row["subject"] == "hybrid" for row in rows):
        return "\n".join(sorted({row["note"] for row in rows}))
    lines = [f"{first['machine']['processor']}, {first['threads']} threads, {first['versions']['kernels']}"]
    timed = [row for row in rows if row["p10_us"] is not None]
    if timed:
        speeds = [f"{speed:.1f}" for speed in sorted(row["bandwidth_gb_s"] for row in timed)]
        spread = speeds[0] if speeds[0] == speeds[-1] else f"{speeds[0]} to {speeds[-1]}"
        lines.append(f"memory reads {spread} GB/s in the same run")
        lines.append("tokens/s is the median's; ratios and floor compare p10; floor = MB / GB/s")
        lines += [f"base: {base}" for base in sorted({row["baseline"] for row in timed if row["baseline"]})]
        if all(row["fraction_of_floor"] is None for row in timed) and first["subject"] != "generate":
            lines.append("no floor: a cache may hold all of these weights")
    load, cpus = first["machine"]["load_average"], first["machine"]["cpus"]
    if timed and load > 1.2 * cpus:
        lines.append(f"this machine was busy (load {load} on {cpus} CPUs): it can do better than this")
    if any(row["synthetic"] for row in rows):
        lines.append("synthetic weights: a real shape, chosen activation sparsity, skew and overlap")
    return "\n".join([*lines, *sorted({row["note"] for row in rows if row["note"]})])
