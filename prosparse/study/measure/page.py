"""One self-contained HTML page: opens from the disk without network or script, and carries the document it shows.

Every number stands in `<data value="..." data-path="...">`: the value of the document at that path, and beside it how a
person reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

from .figures import figures
from .style import STYLE
from .svg import svg

COLUMNS = (
    ("activation_sparsity", "activation sparsity", "share"),
    ("gate_sparsity", "of the gate", "share"),
    ("near_zero_share", "near zero", "share"),
    ("hot_share", "80 % hot", "share"),
    ("overlap", "overlap", "share"),
    ("dead", "never active", "count"),
    ("always_on", "always on", "count"),
    ("union_batch_exponent", "c of U(B)", "number"),
)
DEFINITIONS = (
    ("activation sparsity", "share of act(gate) * up at exactly zero, mean over tokens, then layers"),
    ("of the gate", "the same of act(gate)"),
    ("near zero", "share of |act(gate)| below the limit named below, exact zeros included"),
    ("80 % hot", "the fewest neurons that make 80 % of a layer's activations, as a share of its neurons"),
    ("overlap", "share of a token's active neurons that the next token of the sequence uses too"),
    ("never active, always on", "neurons active in no token, and in every token, of this text"),
    ("c of U(B)", "exponent of 1 - (1 - a)^(B^c), fitted to the unions over B independent sequences: 1 is independent"),
)


def page(document: dict[str, Any]) -> str:
    """The page of a report."""
    model, text = document["model"], document["text"]
    title = f"{model['name']}: activation sparsity"
    count = partial(_number, document, kind="count")
    data = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>',
        "<body><main>"
        f"<header><h1>{escape(model['name'])}</h1><p>{count('text.tokens')} tokens of <b>{escape(text['name'])}</b> "
        f"in windows of {count('settings.window')}; {count('model.layers')} layers of {count('model.neurons')} neurons"
        f", {escape(model['activation'])}, {escape(model['weights'])} weights, {escape(model['device'])}</p></header>",
    ]
    if document["layers"]:
        parts += [_tiles(document), _cards(document), _table(document), *_passes(document), _definitions(document)]
    else:
        parts.append("<p>This share of the text holds no window. Merge it with the others.</p>")
    parts.append(
        f"<footer>{escape(document['made_by'])}; text {escape(text['digest'])}, model {escape(model['fingerprint'])}"
        f'</footer></main><script type="application/json" id="document">{data}</script></body></html>\n'
    )
    return "".join(parts)


def _tiles(document: dict[str, Any]) -> str:
    size = document["settings"]["union_sizes"].index(8)
    tiles = (
        ("mean.activation_sparsity", "share", "of neurons at exactly zero, per token"),
        ("mean.hot_share", "share", "of neurons make 80 % of all activations"),
        ("mean.overlap", "share", "of active neurons stay active in the next token"),
        (f"mean.union_sequence.{size}", "share", "of neurons are needed by 8 neighbouring tokens together"),
    )
    return (
        '<section class="tiles">'
        + "".join(
            f'<div class="tile"><b>{_number(document, path, kind)}</b><span>{words}</span></div>'
            for path, kind, words in tiles
        )
        + "</section>"
    )


def _cards(document: dict[str, Any]) -> str:
    return (
        '<section class="cards">'
        + "".join(
            f"<figure><h2>{escape(figure.title)}</h2>{svg(figure)}<figcaption>{escape(figure.note)}</figcaption></figure>"
            for figure in figures(document)
        )
        + "</section>"
    )


def _table(document: dict[str, Any]) -> str:
    rows = [(f"layer {i}", f"layers.{i}") for i in range(len(document["layers"]))] + [("mean", "mean")]
    cells = [[name, *(_number(document, f"{path}.{key}", kind) for key, _, kind in COLUMNS)] for name, path in rows]
    return _grid("Layer by layer", ["", *(words for _, words, _ in COLUMNS)], cells)


def _passes(document: dict[str, Any]) -> list[str]:
    """Tables of the optional passes."""
    found = []
    costs = (("activation_sparsity", "share"), ("perplexity", "number"), ("perplexity_ratio", "number"))
    words = ["activation sparsity", "perplexity", "ratio"]
    for title, path, key, column in (
        ("Closed below a threshold", "threshold_sweep.rows", "threshold", "threshold"),
        ("Closed by CETT", "cett.targets", "cett", "CETT"),
        ("CETT-PPL-p%", "cett.ppl", "percent", "perplexity may rise by, %"),
    ):
        for_rows = _at(document, path)
        if for_rows:
            columns = ((key, "number"), *costs)
            cells = [
                [_number(document, f"{path}.{i}.{name}", kind) for name, kind in columns] for i in range(len(for_rows))
            ]
            found.append(_grid(title, [column, *words], cells))
    return found


def _definitions(document: dict[str, Any]) -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in DEFINITIONS)
    limit = _number(document, "settings.near_zero", "number")
    return f"<section><h2>What the words mean</h2><dl>{entries}</dl><p>Near zero is below {limit}.</p></section>"


def _grid(title: str, head: Sequence[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = ""
    for row in rows:
        kind = ' class="mean"' if row[0] == "mean" else ""
        body += f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    return (
        f'<section><h2>{escape(title)}</h2><div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
        "</table></div></section>"
    )


def _at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = None if document is None else document[int(key) if isinstance(document, list) else key]
    return document


def _number(document: dict[str, Any], path: str, kind: str) -> str:
    value = _at(document, path)
    if value is None:
        return "-"
    if kind == "share":
        shown = f"{value:.2%}".replace("%", "\u202f%")
    elif kind == "count":
        shown = f"{round(value, 1):,}".removesuffix(".0").replace(",", "\u202f")
    else:
        shown = f"{value:.4g}"
    return f'<data value="{json.dumps(value)}" data-path="{path}">{shown}</data>'
