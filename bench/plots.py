"""python -m prosparse.bench.plots ROWS.. -o FOLDER: the figures of the README and the docs, from rows in files.

Every figure is drawn from what the rows hold and nothing else; runs of the same case are averaged. A figure without
rows is left out.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prosparse.errors import MachineError, ProsparseError, UnsupportedError, UserError
from prosparse.study.measure.colours import QUIET, SERIES

from .files import read_rows
from .row import Row

KINDS = ("png", "svg")
PIXELS_PER_INCH = 160
GRID, INK, SOFT = "#e3e6ea", "#1c2530", "#5d6b7a"
FORMATS = ("fp32", "fp16", "bf16", "int8", "int4")
COLOUR = {"bf16": SERIES[0], "int8": SERIES[1], "int4": SERIES[2], "fp32": SERIES[3], "fp16": "#b0478a"}
NAME = {
    "minicpm-s-1b": "MiniCPM-S-1B",
    "prosparse-llama-2-7b": "ProSparse-LLaMA-2-7B",
    "dense": "prosparse dense",
    "exact": "prosparse exact",
    "transformers-eager": "transformers, eager",
    "transformers-compile": "transformers, torch.compile",
    "llama-cpp": "llama.cpp",
    "llama-cpp-fp16": "llama.cpp",
}
Draw = Callable[[Any, list[Row]], None]  # axes, the rows that the figure shows


def _tokens(axes: Any, rows: list[Row]) -> None:
    labels = []
    for at, ((model, shape, weights), own) in enumerate(_grouped(rows, "model", "shape", "weights").items()):
        labels.append(f"{model or NAME.get(shape, shape)}\n{weights}, {own[0]['activation_sparsity']:.0%} zeros")
        for place, mode, colour in ((at - 0.2, "dense", QUIET), (at + 0.2, "exact", COLOUR[weights])):
            found = [row for row in own if row["mode"] == mode]
            if not found:
                continue
            speed = end = _mean(row["tokens_per_s"] for row in found)
            axes.barh(place, speed, 0.36, color=colour)
            axes.text(0, place, f" {speed:.1f}", va="center", fontsize=8, color="white", fontweight="bold")
            if floors := [row["floor_tokens_per_s"] for row in found if row["floor_tokens_per_s"]]:
                end = max(end, _mean(floors))
                axes.plot([_mean(floors)] * 2, [place - 0.18, place + 0.18], color=INK, linewidth=1.4)
            if mode == "exact" and found[0]["dense_ratio"]:
                axes.text(end, place, f"  {_mean(row['dense_ratio'] for row in found):.2f} x", va="center", fontsize=8)
    axes.plot([], [], "s", color=QUIET, markersize=9, label="dense")
    axes.plot([], [], "s", color=COLOUR["bf16"], markersize=9, label="exact, and its speed over dense")
    axes.plot([], [], "|", color=INK, markersize=10, markeredgewidth=1.4, label="floor: bytes / bandwidth of that run")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.08)
    axes.set_xlabel("tokens/s, median")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(axis="y", length=0)


def _ffn(axes: Any, rows: list[Row]) -> None:
    bound: dict[float, list[float]] = {}
    for weights, own in _grouped(rows, "weights").items():
        points = []
        for asked, same in sorted(_by_sparsity(own).items()):
            dense, exact = ([row for row in same if row["mode"] == mode] for mode in ("dense", "exact"))
            low, high = (_mean(row["dense_ratio_95"][end] for row in exact) for end in (0, 1))
            points.append((asked, _mean(row["dense_ratio"] for row in exact), low, high))
            bound.setdefault(asked, []).append(_mean(row["bytes"] for row in dense) / _mean(r["bytes"] for r in exact))
        x, y, lower, upper = zip(*points, strict=True)
        axes.fill_between(x, lower, upper, color=COLOUR[weights[0]], alpha=0.2, linewidth=0)
        axes.plot(x, y, color=COLOUR[weights[0]], linewidth=2, marker="o", markersize=4, label=weights[0])
    limit = sorted((asked, _mean(quotients)) for asked, quotients in bound.items())
    axes.plot(*zip(*limit, strict=True), "--", color=SOFT, label="what bytes allow")
    axes.axhline(1, color=SOFT, linewidth=0.8)
    axes.set_xlabel("activation sparsity")
    axes.set_ylabel("times our dense, same weights, same run")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_ylim(0, None)
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(frameon=False, loc="upper left")


def _batch(axes: Any, rows: list[Row]) -> None:
    for (weights,), own in _grouped([row for row in rows if row["mode"] == "exact"], "weights").items():
        by_batch = sorted(_grouped(own, "batch").items())
        x = [batch for (batch,), _ in by_batch]
        y = [_mean(row["dense_ratio"] for row in same) for _, same in by_batch]
        low, high = ([_mean(row["dense_ratio_95"][end] for row in same) for _, same in by_batch] for end in (0, 1))
        axes.fill_between(x, low, high, color=COLOUR[weights], alpha=0.2, linewidth=0)
        axes.plot(x, y, color=COLOUR[weights], linewidth=2, marker="o", markersize=4, label=weights)
    axes.axhline(1, color=SOFT, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("sequences that decode together")
    axes.set_ylabel("times our dense, same weights, same run")
    axes.set_ylim(0.8, None)
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(frameon=False)


def _prefill(axes: Any, rows: list[Row]) -> None:
    ours = [row for row in rows if row["mode"] == "dense"]
    prompts = sorted({row["part"] for row in ours}, key=lambda part: int(part[2:]))
    formats = [weights for weights in FORMATS if any(row["weights"] == weights for row in ours)]
    for i, weights in enumerate(formats):
        for at, part in enumerate(prompts):
            same = [row["dense_ratio"] for row in ours if (row["weights"], row["part"]) == (weights, part)]
            if not same:
                continue
            x, share = at + (i - (len(formats) - 1) / 2) * 0.26, _mean(same)
            axes.bar(x, share, 0.24, color=COLOUR[weights], label=weights if at == 0 else None)
            axes.text(x, share, f"{share:.2f}", ha="center", va="bottom", fontsize=8, color=INK)
    axes.axhline(1, color=SOFT, linewidth=0.8)
    axes.set_xticks(range(len(prompts)), [f"{part[2:]} tokens" for part in prompts])
    axes.set_ylabel("speed over PyTorch's bf16 GEMMs")
    axes.set_ylim(0, 1.1)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.legend(frameon=False, loc="upper center", ncols=len(formats))


def _engines(axes: Any, rows: list[Row]) -> None:
    bars: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        bars.setdefault((row["mode"], row["weights"]), []).append(row["tokens_per_s"])
    ordered = sorted(bars, key=lambda key: _mean(bars[key]))
    for at, key in enumerate(ordered):
        speed = _mean(bars[key])
        ours = key[0] in ("dense", "exact", "predicted")
        axes.barh(at, speed, 0.6, color=SERIES[0] if ours else QUIET)
        axes.text(speed, at, f" {speed:.1f}", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(ordered)), [f"{NAME.get(mode, mode)}, {weights}" for mode, weights in ordered])
    axes.set_xlabel("tokens/s, median")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(axis="y", length=0)


def _with_others(rows: Sequence[Row]) -> list[Row]:
    """Rows of runs in which another engine took part."""
    theirs = {row["run"] for row in rows if row["subject"] == "decode" and row["mode"].split("-")[0] in OTHERS}
    return [row for row in rows if row["subject"] == "decode" and row.get("run") in theirs and row.get("run")]


OTHERS = ("transformers", "llama")
FIGURES: dict[str, tuple[str, Draw, Callable[[Sequence[Row]], list[Row]]]] = {
    "tokens": (
        "Decoding: dense against exact",
        _tokens,
        lambda rows: [
            row for row in rows if row["subject"] == "decode" and row["batch"] == 1 and row not in _with_others(rows)
        ],
    ),
    "ffn": (
        "One FFN of MiniCPM-S-1B's shape, by its zeros",
        _ffn,
        lambda rows: [row for row in rows if row["subject"] == "ffn" and row["shape"] == "minicpm-s-1b"],
    ),
    "batch": (
        "Several sequences: exact against dense",
        _batch,
        lambda rows: [row for row in rows if row["subject"] == "decode" and row["batch"] > 1],
    ),
    "prefill": ("Reading a prompt", _prefill, lambda rows: [row for row in rows if row["subject"] == "prefill"]),
    "engines": ("Engines on one shape, in one run", _engines, _with_others),
}


def draw(rows: Sequence[Row], names: Sequence[str] | None = None) -> dict[str, bytes]:
    """Contents of `<figure>.png` and `<figure>.svg`, by file name.

    Args:
        rows: of any subjects.
        names: of `FIGURES`; all that have rows where left out.

    Raises:
        UnsupportedError: matplotlib is not installed.
        UserError: no figure can be drawn from these rows.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("bench: plots need matplotlib; pip install prosparse[plots]") from None
    found = {name: FIGURES[name][2](rows) for name in names or FIGURES}
    found = {name: own for name, own in found.items() if own}
    if not found:
        raise UserError(f"bench: these rows make none of the figures {', '.join(names or FIGURES)}")
    files = {}
    looks: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "prosparse", "axes.edgecolor": SOFT, "text.color": INK}
    looks |= dict.fromkeys(("xtick.color", "ytick.color"), SOFT)
    looks |= dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor", "axes.labelcolor"), INK)
    looks |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    with matplotlib.rc_context(looks):
        for name, own in found.items():
            title, fill, _ = FIGURES[name]
            lines = len(_grouped(own, "shape", "weights", "mode")) if name in ("tokens", "engines") else 10
            canvas = Figure(figsize=(6.6, max(2.2, 0.9 + 0.3 * lines)), layout="constrained")
            axes = canvas.subplots()
            axes.set_axisbelow(True)
            fill(axes, own)
            axes.set_title(title, loc="left", fontweight="bold", color=INK)
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                out = io.BytesIO()
                canvas.savefig(out, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
                files[f"{name}.{kind}"] = out.getvalue()
    return files


def draw_file(rows: Sequence[Row], path: Path) -> None:
    """Write the figure that shows most of some rows.

    Raises:
        UserError: a name that ends in neither .png nor .svg, or rows that make no figure.
        UnsupportedError: matplotlib is not installed.
        MachineError: it cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise UserError(f"bench: a plot is a .png or an .svg file, got {path}")
    name = next((name for name in ("engines", "batch", *FIGURES) if FIGURES[name][2](rows)), None)
    if name is None:
        raise UserError("bench: these rows make no figure; leave --plot out")
    save({path.name: draw(rows, [name])[f"{name}.{kind}"]}, path.parent)


def save(files: dict[str, bytes], folder: Path, prefix: str = "") -> list[Path]:
    """Write files into a folder, which is made.

    Raises:
        MachineError: they cannot be written.
    """
    paths = [folder / f"{prefix}{name}" for name in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(paths, files.values(), strict=True):
            path.write_bytes(data)
    except OSError as fault:
        raise MachineError(f"{folder}: cannot write the figures ({fault.strerror}); check the path") from fault
    return paths


def _grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _by_sparsity(rows: Iterable[Row]) -> dict[float, list[Row]]:
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["synthetic"]["activation_sparsity"], []).append(row)
    return groups


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m prosparse.bench.plots", description="Draw figures from benchmark rows, as PNG and SVG."
    )
    parser.add_argument("rows", type=Path, nargs="+", metavar="ROWS", help="files of rows, one JSON object a line")
    parser.add_argument("-o", "--output", type=Path, default=Path("."), metavar="FOLDER", help="where (default: here)")
    parser.add_argument("--prefix", default="bench-", help="of the files' names (default: bench-)")
    args = parser.parse_args(arguments)
    try:
        rows = [row for path in args.rows for row in read_rows(path)]
        for path in save(draw(rows), args.output, args.prefix):
            sys.stdout.write(f"{path}\n")
    except ProsparseError as fault:
        sys.stderr.write(f"{fault}\n")
        return 2 if isinstance(fault, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
