"""What there is to see in a report, as plain data: the page and matplotlib draw the same figures from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STEPS = [0, 1, 2, 3, *(half << power for power in range(1, 30) for half in (2, 3))]  # a point is drawn for each stretch


@dataclass(frozen=True)
class Series:
    """One line or one set of bars: ys over xs. A `strong` one stands out."""

    name: str
    xs: list[float]
    ys: list[float]
    strong: bool = True


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        name: of its files.
        title: what it shows, for a person.
        kind: "bars", "lines" or "heat".
        x, y: labels of the axes.
        series: for heat one row each, from layer 0 on, ys being the cells.
        percent: y is a share, shown in percent.
        powers: x goes in powers of two.
        note: how to read it.
    """

    name: str
    title: str
    kind: str
    x: str
    y: str
    series: list[Series] = field(default_factory=list)
    percent: bool = True
    powers: bool = False
    note: str = ""


def figures(document: dict[str, Any]) -> list[Figure]:
    """The figures of a report, those of optional passes only where they were made; none of a share without tokens."""
    if not document["layers"]:
        return []
    found = [
        _layers(document),
        _cdf(document),
        _heat(document),
        _unions(document),
        _overlap(document),
        _positions(document),
    ]
    optional = (_stability(document), _predictor(document), _sweep(document))
    return found + [figure for figure in optional if figure is not None]


def _layers(document: dict[str, Any]) -> Figure:
    layers = document["layers"]
    near = document["settings"]["near_zero"]
    active = [1 - layer["activation_sparsity"] for layer in layers]
    larger = [1 - layer["near_zero_share"] for layer in layers]
    series = [_by_layer("act(gate) * up not zero", active)]
    if max(abs(a - b) for a, b in zip(active, larger, strict=True)) > 1e-4:
        series.append(_by_layer(f"|act(gate)| at least {near:g}", larger))
    return Figure(
        "layers",
        "Active neurons by layer",
        "bars",
        "layer",
        "share of neurons",
        series,
        note="What a token uses of each layer, on average: 1 - activation sparsity.",
    )


def _overlap(document: dict[str, Any]) -> Figure:
    layers = document["layers"]
    return Figure(
        "overlap",
        "Active neurons that stay active",
        "bars",
        "layer",
        "share of active neurons",
        [
            _by_layer("also active in the next token", [layer["overlap"] or 0.0 for layer in layers]),
            _by_layer("what frequencies alone would give", [layer["overlap_by_frequency"] or 0.0 for layer in layers]),
        ],
        note="Overlap of neighbouring tokens, beside that of two tokens anywhere in a text with these hot neurons.",
    )


def _cdf(document: dict[str, Any]) -> Figure:
    lines = [layer["cdf"] for layer in document["layers"]]
    series = [
        Series(f"layer {i}", [x / 100 for x in range(101)], ys, False) for i, ys in enumerate(lines) if ys is not None
    ]
    mean = document["mean"]["cdf"]
    if mean[0] is not None:
        series.append(Series("mean of layers", [x / 100 for x in range(101)], mean))
    return Figure(
        "cdf",
        "Hot and cold neurons",
        "lines",
        "share of neurons, hottest first",
        "share of activations",
        series,
        note="The steeper the start, the more a few hot neurons do. Light lines are layers, from pale (first) on.",
    )


def _heat(document: dict[str, Any]) -> Figure:
    rows = [layer["frequency_by_rank"] for layer in document["layers"]]
    series = [Series(f"layer {i}", [x / len(ys) for x in range(len(ys))], ys) for i, ys in enumerate(rows)]
    return Figure(
        "frequency",
        "How often neurons are active",
        "heat",
        "share of neurons, hottest first",
        "layer",
        series,
        note="Colour is the share of tokens in which a neuron is active, on a logarithmic scale; grey is never.",
    )


def _unions(document: dict[str, Any]) -> Figure:
    mean, sizes = document["mean"], document["settings"]["union_sizes"]
    one = [1 - layer["activation_sparsity"] for layer in document["layers"]]
    independent = [sum(1 - (1 - a) ** b for a in one) / len(one) for b in [1, *sizes]]
    series = [
        _union("neighbouring tokens of a sequence", sizes, mean["union_sequence"], independent[0]),
        _union("tokens of independent sequences", sizes, mean["union_batch"], independent[0]),
        Series("if neurons were drawn at random", [1.0, *map(float, sizes)], independent, False),
    ]
    return Figure(
        "unions",
        "Neurons that several tokens need together",
        "lines",
        "tokens in one step",
        "share of neurons",
        series,
        powers=True,
        note="What a step over several tokens has to read: the union of their active neurons, mean of layers.",
    )


def _union(name: str, sizes: list[int], ys: list[float | None], one: float) -> Series:
    points = [(1.0, one), *((float(b), y) for b, y in zip(sizes, ys, strict=True) if y is not None)]
    return Series(name, [x for x, _ in points], [y for _, y in points])


def _positions(document: dict[str, Any]) -> Figure:
    def line(name: str, ys: list[float], strong: bool) -> Series:
        parts = [ys[a:b] for a, b in zip(STEPS, STEPS[1:], strict=False) if ys[a:b]]
        xs = [a + (1 + len(part)) / 2 for a, part in zip(STEPS, parts, strict=False)]
        return Series(name, xs, [sum(part) / len(part) for part in parts], strong)

    series = [line(f"layer {i}", layer["activation_sparsity_at"], False) for i, layer in enumerate(document["layers"])]
    return Figure(
        "positions",
        "Activation sparsity by position",
        "lines",
        "token of the window",
        "activation sparsity",
        [*series, line("mean of layers", document["mean"]["activation_sparsity_at"], True)],
        powers=True,
        note="The first tokens of a text are unlike the others. Later positions are averaged, more and more of them.",
    )


def _stability(document: dict[str, Any]) -> Figure | None:
    found = document["stability"]
    if found is None:
        return None
    layers = found["layers"]
    return Figure(
        "stability",
        "Hot neurons on a second text",
        "bars",
        "layer",
        "share",
        [
            _by_layer("second text's activations covered", [layer["covered"] or 0.0 for layer in layers]),
            _by_layer("hot sets in common (Jaccard)", [layer["jaccard"] or 0.0 for layer in layers]),
        ],
        note=f"Second text: {found['second_text']['name']}. Hot neurons make 80 % of a layer's activations.",
    )


def _predictor(document: dict[str, Any]) -> Figure | None:
    found = document["predictor"]
    if found is None:
        return None
    layers = found["layers"]
    return Figure(
        "predictor",
        "Predictor by layer",
        "bars",
        "layer",
        "share",
        [
            _by_layer("predictor recall", [layer["recall"] or 0.0 for layer in layers]),
            _by_layer("predicted sparsity", [layer["predicted_sparsity"] for layer in layers]),
        ],
    )


def _sweep(document: dict[str, Any]) -> Figure | None:
    series = []
    sweep, cett = document["threshold_sweep"], document["cett"]
    if sweep is not None:
        series.append(_against_loss("closed below a threshold of act(gate)", sweep["rows"]))
    if cett is not None and cett["targets"]:
        series.append(_against_loss("closed by CETT", cett["targets"]))
    if cett is not None and cett["ppl"]:
        series.append(_against_loss("CETT-PPL-p%", cett["ppl"]))
    if not series:
        return None
    return Figure(
        "sweep",
        "What closing more neurons costs",
        "lines",
        "activation sparsity",
        "perplexity ratio",
        series,
        percent=False,
        note="1 is the model as it is. Further right at the same height is better.",
    )


def _against_loss(name: str, rows: list[dict[str, Any]]) -> Series:
    rows = sorted(rows, key=lambda row: row["activation_sparsity"])
    return Series(name, [row["activation_sparsity"] for row in rows], [row["perplexity_ratio"] for row in rows])


def _by_layer(name: str, ys: list[float]) -> Series:
    return Series(name, [float(x) for x in range(len(ys))], ys)
