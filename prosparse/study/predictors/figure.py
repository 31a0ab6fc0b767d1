"""The trade-off as a picture: what is read per token, or how fast it runs, against what it costs in quality."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from ...errors import UnsupportedError, UserError
from ...weights.whole_files import write_whole
from ..measure.colours import QUIET, SERIES

FAMILIES = {
    "low_rank": (SERIES[0], "o"),
    "low_bit_gate": (SERIES[1], "s"),
    "sign_bits": (SERIES[2], "^"),
    "hot": (QUIET, "v"),
    "random": (QUIET, "x"),
    "previous": (QUIET, "P"),
}
OTHER = (SERIES[3], "D")
LABELS = {"low_rank": "low rank", "low_bit_gate": "int4 gate", "sign_bits": "sign bits", "hot": "hottest neurons",
          "previous": "previous token's set"}  # fmt: skip
LEAST_KL = 1e-7  # drawn at the bottom
SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: str | Path) -> None:
    """Raise what `draw` would, before an evaluation that takes minutes."""
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"predictor: --plot takes a name ending in {', '.join(SUFFIXES)}, got {Path(path).name}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            "predictor: a plot needs matplotlib; install it (`pip install 'prosparse[plots]'`) or leave --plot out"
        )


def draw(document: dict[str, Any], path: str | Path) -> None:
    """Write the figure of an evaluation; its suffix says the format.

    Raises:
        UserError: a suffix that is none of `SUFFIXES`.
        UnsupportedError: matplotlib is not installed.
    """
    path = Path(path)
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "prosparse"}):
        canvas = Figure(figsize=(7.2, 4.4), layout="constrained")
        _draw(canvas.subplots(), document)
        out = io.BytesIO()
        canvas.savefig(out, format=path.suffix[1:], dpi=130)
    write_whole({path: out.getvalue()})


def _draw(axes: Any, document: dict[str, Any]) -> None:
    timed = document["modes"]["exact"]["tokens_per_s"] is not None
    points = [point for point in document["points"] if _x(point, timed) is not None]
    for family in dict.fromkeys(point["family"] for point in points):
        if family == "oracle":
            continue
        own = sorted((point for point in points if point["family"] == family), key=lambda point: _x(point, timed))
        colour, mark = FAMILIES.get(family, OTHER)
        xs, ys = [_x(point, timed) for point in own], [_y(point) for point in own]
        line = "-" if family in FAMILIES and colour != QUIET else ":"
        axes.plot(
            xs, ys, line, color=colour, marker=mark, markersize=5, linewidth=1.5, label=LABELS.get(family, family)
        )
        for point, x, y in zip(own, xs, ys, strict=True):
            if point["is_predictor"] and point["target"] is not None:
                left = family == "low_rank"  # the curves of the kinds may meet; their numbers should not
                axes.annotate(f"{point['target']:g}", (x, y), (-6, -3) if left else (6, -1), fontsize=7, color=colour,
                              textcoords="offset points", ha="right" if left else "left")  # fmt: skip
    _lines(axes, document, points, timed)
    axes.set_yscale("log")
    axes.set_ylim(bottom=min([_y(point) for point in points if point["family"] != "oracle"], default=LEAST_KL) / 4)
    axes.set_xlabel("tokens/s, measured" if timed else "MB read per token")
    axes.set_ylabel("KL from exact, nats per token (numbers: recall asked for)")
    axes.set_title("What a predictor saves, and what it costs", loc="left", fontweight="bold")
    axes.grid(color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _lines(axes: Any, document: dict[str, Any], points: list[dict[str, Any]], timed: bool) -> None:
    target = document["target_kl"]
    axes.axhline(target, color="#b03a3a", linewidth=1, linestyle="--", label=f"target {target:g}")
    chosen = [point for point in points if point["name"] == document["chosen"]]
    for point in chosen:
        axes.plot(_x(point, timed), _y(point), "o", markersize=13, markerfacecolor="none", markeredgecolor="#b03a3a",
                  label=f"chosen: {point['name'].replace('_', ' ')}")  # fmt: skip
    bounds = [("exact", _x(document["modes"]["exact"], timed))]
    bounds += [("oracle", _x(point, timed)) for point in points if point["family"] == "oracle"]
    for name, x in bounds:
        if x is not None:
            axes.axvline(x, color=QUIET, linewidth=1, linestyle="--")
            axes.annotate(name, (x, 0), (3, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                          fontsize=8, color="#5d6b7a")  # fmt: skip


def _x(point: dict[str, Any], timed: bool) -> Any:
    return point["tokens_per_s"] if timed else point["bytes_per_token"] / 1e6


def _y(point: dict[str, Any]) -> float:
    return max(point["kl_divergence"]["value"], LEAST_KL)
