"""The figures of a report as inline SVG: no library, no script, sharp at every width, values on hovering."""

from __future__ import annotations

import math
from html import escape

from .colours import FLOOR, QUIET, SERIES, of_frequency, of_layer
from .figures import Figure, Series

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 22, 10, 40
LEGEND_LINE = 17


def svg(figure: Figure) -> str:
    """One figure."""
    named = [series for series in figure.series if not series.name.startswith("layer ")]
    top = TOP + LEGEND_LINE * (len(named) if figure.kind != "heat" else 1)
    body = {"bars": _bars, "lines": _lines, "heat": _heat}[figure.kind](figure, top)
    label = escape(f"{figure.title}: {figure.y} over {figure.x}")
    middle = (top + HEIGHT - BOTTOM) / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}'
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(figure.x)}'
        f'</text><text class="axis" x="0" y="0" text-anchor="middle" transform="translate(11 {middle}) '
        f'rotate(-90)">{escape(figure.y)}</text></svg>'
    )


class _Scale:
    """From data to the page, linear or in powers of two."""

    def __init__(self, low: float, high: float, start: float, end: float, powers: bool = False) -> None:
        self.powers = powers
        self.low, self.high = (math.log2(low), math.log2(high)) if powers else (low, high)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        at = math.log2(value) if self.powers else value
        share = (at - self.low) / ((self.high - self.low) or 1)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Round values, about five."""
        if self.powers:
            every = max(1, math.ceil((self.high - self.low) / 6))
            return [2.0**i for i in range(math.ceil(self.low), math.floor(self.high) + 1, every)]
        rough = (self.high - self.low) / 5 or 1
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _bars(figure: Figure, top: int) -> str:
    x, y = _frame(figure, top, -0.5, len(figure.series[0].xs) - 0.5, 0.0)
    width = 0.8 / len(figure.series)
    parts = [_axes(figure, x, y, [float(i) for i in figure.series[0].xs[:: _every(len(figure.series[0].xs), 16)]])]
    for i, series in enumerate(figure.series):
        for at, value in zip(series.xs, series.ys, strict=True):
            left, right = x(at - 0.4 + i * width), x(at - 0.4 + (i + 0.92) * width)
            parts.append(
                f'<rect x="{left}" y="{y(value)}" width="{right - left:.2f}" height="{y(0) - y(value):.2f}" rx="1.5" '
                f'fill="{SERIES[i]}"><title>layer {at:g}, {escape(series.name)}: {value:.2%}</title></rect>'
            )
    return "".join(parts) + _legend([(series.name, SERIES[i], False) for i, series in enumerate(figure.series)])


def _lines(figure: Figure, top: int) -> str:
    xs = [value for series in figure.series for value in series.xs]
    ys = [value for series in figure.series for value in series.ys]
    low = 0.0 if figure.percent and min(ys) < 0.5 else _down(min(ys), max(ys))
    x, y = _frame(figure, top, min(xs), max(xs), low)
    parts, legend = [_axes(figure, x, y, x.ticks())], []
    layers = [series.name for series in figure.series if series.name.startswith("layer ")]
    strong = 1 if layers else 0  # layers are blue
    for series in figure.series:
        if series.name in layers:
            parts.append(_line(series, x, y, of_layer(layers.index(series.name), len(layers)), 0.9))
        elif series.strong:
            colour = SERIES[strong]
            parts.append(_line(series, x, y, colour, 2.4))
            parts += _points(figure, series, x, y, colour)
            legend.append((series.name, colour, False))
            strong += 1
        else:
            parts.append(_line(series, x, y, QUIET, 1.4, dashed=True))
            legend.append((series.name, QUIET, True))
    return "".join(parts) + _legend(legend)


def _heat(figure: Figure, top: int) -> str:
    rows = len(figure.series)
    x = _Scale(0, 1, LEFT, WIDTH - RIGHT)
    y = _Scale(0, rows, top, HEIGHT - BOTTOM)
    parts = []
    for row, series in enumerate(figure.series):
        cells, start = len(series.ys), 0
        colours = [of_frequency(value) for value in series.ys]
        for i in range(1, cells + 1):
            if i == cells or colours[i] != colours[start]:
                parts.append(
                    f'<rect x="{x(start / cells)}" y="{y(row)}" width="{x(i / cells) - x(start / cells):.2f}" '
                    f'height="{y(row + 1) - y(row):.2f}" fill="{colours[start]}"><title>{series.name}, neurons '
                    f"{start / cells:.0%} to {i / cells:.0%}: active in {series.ys[start]:.3%} of tokens</title></rect>"
                )
                start = i
    parts += [_tick_x(x(tick), f"{tick:.0%}") for tick in x.ticks()]
    parts += [_tick_y(y(row + 0.5) + 4, str(row)) for row in range(0, rows, _every(rows, 12))]
    marks = [10.0**-exponent for exponent in range(round(-math.log10(FLOOR)), -1, -1)]
    legend = [(f"{mark * 100:g} %", of_frequency(mark)) for mark in marks]
    for i, (name, colour) in enumerate([("never", of_frequency(0)), *legend]):
        at = LEFT + i * 65
        parts.append(f'<rect x="{at}" y="4" width="11" height="11" rx="2" fill="{colour}"/>')
        parts.append(f'<text class="legend" x="{at + 15}" y="14">{name}</text>')
    return "".join(parts)


def _frame(figure: Figure, top: int, first: float, last: float, low: float) -> tuple[_Scale, _Scale]:
    high = max(value for series in figure.series for value in series.ys)
    x = _Scale(first, last, LEFT, WIDTH - RIGHT, figure.powers and figure.kind == "lines")
    above = high * 1.02 if high > low else low + 1
    return x, _Scale(low, min(above, 1.0) if figure.percent else above, HEIGHT - BOTTOM, top)


def _axes(figure: Figure, x: _Scale, y: _Scale, ticks: list[float]) -> str:
    shares_on_x = figure.name in ("cdf", "sweep")
    parts = []
    values = y.ticks()
    digits = 0 if all(abs(v * 100 - round(v * 100)) < 1e-6 for v in values) else 1
    for value in values:
        at = y(value)
        text = f"{value:.{digits}%}" if figure.percent else f"{value:g}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>' + _tick_y(at + 4, text)
        )
    fine = 0 if all(abs(v * 100 - round(v * 100)) < 1e-6 for v in ticks) else 1
    return "".join(parts) + "".join(_tick_x(x(v), f"{v:.{fine}%}" if shares_on_x else f"{v:g}") for v in ticks)


def _tick_x(at: float, text: str) -> str:
    return f'<text class="tick" x="{at}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>'


def _tick_y(at: float, text: str) -> str:
    return f'<text class="tick" x="{LEFT - 6}" y="{at:.2f}" text-anchor="end">{text}</text>'


def _line(series: Series, x: _Scale, y: _Scale, colour: str, width: float, dashed: bool = False) -> str:
    points = " ".join(f"{x(a)},{y(b)}" for a, b in zip(series.xs, series.ys, strict=True))
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"{dash} '
        f'stroke-linejoin="round"><title>{escape(series.name)}</title></polyline>'
    )


def _points(figure: Figure, series: Series, x: _Scale, y: _Scale, colour: str) -> list[str]:
    if len(series.xs) > 20:
        return []
    return [
        f'<circle cx="{x(a)}" cy="{y(b)}" r="3.6" fill="{colour}"><title>{escape(series.name)}: {a:g}, '
        f"{f'{b:.2%}' if figure.percent else f'{b:.4f}'}</title></circle>"
        for a, b in zip(series.xs, series.ys, strict=True)
    ]


def _legend(entries: list[tuple[str, str, bool]]) -> str:
    parts = []
    for i, (name, colour, dashed) in enumerate(entries):
        at = 10 + i * LEGEND_LINE
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + 18}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="3"{dash}/>'
        )
        parts.append(f'<text class="legend" x="{LEFT + 24}" y="{at + 4}">{escape(name)}</text>')
    return "".join(parts)


def _every(count: int, most: int) -> int:
    return -(-count // most)


def _down(low: float, high: float) -> float:
    return low - 0.08 * ((high - low) or 1)
