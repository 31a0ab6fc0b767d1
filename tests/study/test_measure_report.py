"""The JSON document, the page and the plots say the same, and say it without network."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hand_made import LAYERS, write_hand_made

import prosparse
from prosparse.engine import load
from prosparse.errors import MissingFileError, UserError
from prosparse.study import Report
from prosparse.study.measure.figures import figures


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    engine = load(write_hand_made(tmp_path_factory.mktemp("hand") / "made"), weights="fp32")
    rng = torch.Generator().manual_seed(0)
    tokens, second = torch.randint(0, 4, (40, 16), generator=rng), torch.randint(1, 4, (3, 16), generator=rng)

    def all_of_them(layer: int, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), len(LAYERS[0]), dtype=torch.bool)

    extra: dict[str, Any] = {"thresholds": [0.0, 0.5], "cett": [0.2], "cett_ppl": [1.0], "sample": 64}
    return prosparse.measure(
        engine, [tokens], second=[second], predictor=all_of_them, name="made <by> hand & co", **extra
    )


class Page(HTMLParser):
    """What a browser would show and fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, float, str]] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.scripts: list[str] = []
        self._path: tuple[str, float] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "data":
            self._path = found["data-path"], json.loads(found["value"])

    def handle_data(self, data: str) -> None:
        if self._path is not None:
            self.numbers.append((*self._path, data))
            self._path = None
        elif self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def test_the_document_is_plain_and_has_a_version(report: Report, tmp_path: Path) -> None:
    text = report.to_json(tmp_path / "sub" / "measure.json")
    document = json.loads(text)
    assert document == report.document and document["schema_version"] == 1
    assert (tmp_path / "sub" / "measure.json").read_text() == text
    assert document["model"]["name"] == "made <by> hand & co"
    parts = ("mean", "layers", "predictor", "stability", "threshold_sweep", "cett")
    assert all(document[part] for part in parts)
    assert document["predictor"]["mean"] == {"recall": 1.0, "predicted_sparsity": 0.0}


def test_numbers_of_the_page_are_those_of_the_document(report: Report, tmp_path: Path) -> None:
    page = Page(report.to_html(tmp_path / "page.html"))
    assert json.loads("".join(page.scripts)) == report.document
    assert len(page.numbers) > 30
    for path, value, shown in page.numbers:
        assert value == at(report.document, path), path
        text = shown.replace("\u202f", "").replace(" ", "")
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        assert number == pytest.approx(value, rel=1e-3, abs=5e-5), path
    shown_paths = {path for path, _, _ in page.numbers}
    for i in range(len(LAYERS)):
        assert f"layers.{i}.activation_sparsity" in shown_paths
    assert {"cett.ppl.0.activation_sparsity", "threshold_sweep.rows.1.perplexity_ratio"} <= shown_paths


def test_the_page_needs_nothing_from_outside(report: Report) -> None:
    text = report.to_html()
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "xlink:href", "action"} & attributes.keys()
        assert tag != "script" or attributes["type"] == "application/json"
    assert not re.search(r"https?://|@import|url\(", text)
    assert "made &lt;by&gt; hand &amp; co" in text and "<by>" not in text


def test_every_figure_is_on_the_page_as_well_formed_svg(report: Report) -> None:
    drawn = re.findall(r"<svg.*?</svg>", report.to_html(), flags=re.DOTALL)
    names = [figure.name for figure in figures(report.document)]
    optional = ["stability", "predictor", "sweep"]
    assert names == ["layers", "cdf", "frequency", "unions", "overlap", "positions", *optional]
    assert len(drawn) == len(names)
    bars = ElementTree.fromstring(drawn[0]).findall("rect")
    heights = [float(bar.attrib["height"]) for bar in bars[: len(LAYERS)]]
    active = [1 - layer["activation_sparsity"] for layer in report.document["layers"]]
    assert heights[1] / heights[0] == pytest.approx(active[1] / active[0], rel=0.01)
    for text in drawn:
        numbers = [v for e in ElementTree.fromstring(text).iter() for k, v in e.attrib.items() if k in ("x", "y", "cx")]
        assert all(-1 <= float(number) <= 470 for number in numbers)


def test_plots_are_png_and_svg_of_the_same_figures(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = report.plot(tmp_path / "plots")
    names = [figure.name for figure in figures(report.document)]
    assert sorted(path.name for path in files) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    assert sorted((tmp_path / "plots").iterdir()) == sorted(files)
    for path in files:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in data[:1000]
    again = {path.name: path.read_bytes() for path in report.plot(tmp_path / "again")}
    assert again == {path.name: path.read_bytes() for path in files}


def test_an_empty_share_says_so(report: Report) -> None:
    empty = Report(type(report.counts).zeros(2, 4, 16), {**report.header, "share": [8, 8]})
    assert empty.document["mean"] is None and empty.document["layers"] == []
    assert "This share of the text holds no window" in empty.to_html()
    assert figures(empty.document) == []


def test_saved_and_loaded_is_the_same(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "out", plots=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "counts.safetensors",
        "measure.html",
        "measure.json",
    ]
    again = Report.load(tmp_path / "out")
    assert again.document == report.document and again.to_html() == report.to_html()
    with pytest.raises(MissingFileError, match="counts.safetensors: no such file"):
        Report.load(tmp_path)
    profile = report.profile()
    profile.save(tmp_path / "counts.safetensors")
    with pytest.raises(UserError, match="holds no counts of `prosparse measure`"):
        Report.load(tmp_path)


def test_a_second_text_of_another_model_is_refused(report: Report) -> None:
    header = copy.deepcopy(report.header)
    header["model"]["content"] = "other"
    with pytest.raises(UserError, match="the second text was read by another model"):
        report.with_second(Report(report.counts, header))
