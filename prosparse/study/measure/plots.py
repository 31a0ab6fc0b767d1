"""The figures of a report with matplotlib, as PNG and SVG."""

from __future__ import annotations

import io
from typing import Any

from ...errors import UnsupportedError
from .colours import FLOOR, QUIET, SERIES, of_frequency, of_layer
from .figures import Figure, figures

PIXELS_PER_INCH = 130


def draw(document: dict[str, Any]) -> dict[str, bytes]:
    """Contents of `<figure>.png` and `<figure>.svg`, by file name.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UnsupportedError(
            "measure: plots need matplotlib; install it (`pip install 'prosparse[plots]'`), or go without (--no-plots)"
        ) from None
    files = {}
    # a fixed salt and no date: the same report draws the same bytes
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "prosparse", "axes.spines.top": False}):
        for figure in figures(document):
            canvas = Canvas(figsize=(6.4, 3.8), layout="constrained")
            _draw(canvas, figure)
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                out = io.BytesIO()
                canvas.savefig(out, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
                files[f"{figure.name}.{kind}"] = out.getvalue()
    return files


def _draw(canvas: Any, figure: Figure) -> None:
    axes = canvas.subplots()
    axes.spines["right"].set_visible(False)
    {"bars": _bars, "lines": _lines, "heat": _heat}[figure.kind](canvas, axes, figure)
    axes.set_title(figure.title, loc="left", fontweight="bold")
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)


def _bars(canvas: Any, axes: Any, figure: Figure) -> None:
    width = 0.8 / len(figure.series)
    for i, series in enumerate(figure.series):
        at = [x + (i - (len(figure.series) - 1) / 2) * width for x in series.xs]
        axes.bar(at, series.ys, width * 0.92, color=SERIES[i], label=series.name)
    axes.set_xticks(figure.series[0].xs if len(figure.series[0].xs) <= 16 else figure.series[0].xs[::4])
    axes.set_ylim(0, max(1e-9, *(y for series in figure.series for y in series.ys)) * 1.15)
    _finish(axes, figure)


def _lines(canvas: Any, axes: Any, figure: Figure) -> None:
    layers = [series.name for series in figure.series if series.name.startswith("layer ")]
    strong = 1 if layers else 0  # layers are blue
    for series in figure.series:
        if series.name in layers:
            colour = of_layer(layers.index(series.name), len(layers))
            axes.plot(series.xs, series.ys, color=colour, linewidth=0.8)
        elif series.strong:
            mark = "o" if len(series.xs) <= 20 else None
            axes.plot(
                series.xs, series.ys, color=SERIES[strong], linewidth=2, marker=mark, markersize=4, label=series.name
            )
            strong += 1
        else:
            axes.plot(series.xs, series.ys, color=QUIET, linewidth=1.2, linestyle="--", label=series.name)
    if figure.powers:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    _finish(axes, figure)


def _heat(canvas: Any, axes: Any, figure: Figure) -> None:
    from matplotlib.colors import to_rgb

    cells = [[to_rgb(of_frequency(y)) for y in series.ys] for series in figure.series]
    axes.imshow(cells, aspect="auto", interpolation="nearest", extent=(0, 1, len(cells) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    marks = [10.0**exponent for exponent in range(0, -5, -1) if 10.0**exponent >= FLOOR]
    for mark in marks:
        axes.plot([], [], "s", color=of_frequency(mark), label=f"{mark:.2%}".replace(".00%", "%"))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="of tokens")


def _finish(axes: Any, figure: Figure) -> None:
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    if figure.percent:
        axes.yaxis.set_major_formatter(
            lambda y, _: f"{y:.0%}" if y % 0.01 < 1e-9 or y % 0.01 > 0.01 - 1e-9 else f"{y:.1%}"
        )
    if figure.name in ("cdf", "sweep"):
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}" if figure.name == "cdf" else f"{x:.1%}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
