"""What a measurement found: one JSON document, from which plots and page are drawn, and the counts behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...errors import UserError
from ...weights.neuron_profile import Profile
from ...weights.whole_files import write_whole
from .counts import UNION_SIZES, Counts
from .metrics import layer_metrics, mean_metrics, predictor_metrics, stability
from .page import page
from .plots import draw
from .storage import pack_counts, read_counts

SCHEMA_VERSION = 1
JSON, COUNTS, PAGE, PLOTS = "measure.json", "counts.safetensors", "measure.html", "plots"


class Report:
    """The result of `measure`.

    Args:
        counts: sums of the pass.
        header: what they are of, see `Pass.header`.
        extra: parts that other passes made, by their key in the document.

    Attributes:
        document: plain data, the contents of the JSON.
    """

    def __init__(self, counts: Counts, header: dict[str, Any], extra: dict[str, Any] | None = None) -> None:
        self.counts, self.header, self._extra = counts, header, extra or {}
        self.document = self._document()

    def to_json(self, path: str | Path | None = None) -> str:
        """The document as text; also written to `path` if one is given."""
        text = json.dumps(self.document, ensure_ascii=False, indent=1) + "\n"
        if path is not None:
            write_whole({Path(path): text.encode()})
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """One page that needs no network, with the document inside; also written to `path` if one is given."""
        text = page(self.document)
        if path is not None:
            write_whole({Path(path): text.encode()})
        return text

    def plot(self, folder: str | Path) -> list[Path]:
        """Every figure as PNG and SVG in a folder; returns the files.

        Raises:
            UnsupportedError: matplotlib is not installed.
        """
        files = {Path(folder) / name: data for name, data in draw(self.document).items()}
        write_whole(files)
        return list(files)

    def save(self, folder: str | Path, plots: bool = True) -> None:
        """Write JSON, counts, page and plots; all of them appear, or none.

        Raises:
            UnsupportedError: plots are wanted and matplotlib is not installed.
            MachineError: the folder cannot be written.
        """
        folder = Path(folder)
        files = {folder / PLOTS / name: data for name, data in draw(self.document).items()} if plots else {}
        files[folder / PAGE] = self.to_html().encode()
        files[folder / COUNTS] = pack_counts(self.counts, {**self.header, "extra": self._extra})
        files[folder / JSON] = self.to_json().encode()
        write_whole(files)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """What `save` wrote, made again from its counts.

        Raises:
            MissingFileError: no such folder, or no counts in it.
            UserError: counts that are damaged or of another version.
        """
        counts, header, _ = read_counts(Path(folder) / COUNTS)
        extra = header.pop("extra", {})
        return cls(counts, header, extra)

    def profile(self) -> Profile:
        """The counts of the neurons, for placement."""
        model, text = self.header["model"], self.header["text"]
        active = torch.from_numpy(self.counts.active.copy())
        return Profile(active, self.counts.tokens, model["fingerprint"], model["content"], text["name"])

    def with_second(self, second: Report) -> Report:
        """This report with the stability of its hot set on another text.

        Raises:
            UserError: the other is of another model.
        """
        mine, theirs = self.header["model"], second.header["model"]
        if any(mine[key] != theirs[key] for key in ("fingerprint", "content", "layers", "neurons")):
            raise UserError("measure: the second text was read by another model; measure both with one")
        found = stability(self.counts.active, second.counts.active)
        text = {**second.header["text"], "tokens": second.counts.tokens}
        return Report(self.counts, self.header, {**self._extra, "stability": {"second_text": text, **found}})

    def _document(self) -> dict[str, Any]:
        counts, header = self.counts, self.header
        layers = [layer_metrics(counts, layer) for layer in range(counts.layers)] if counts.tokens else []
        predicted = counts.tokens and counts.predicted.any()
        return {
            "schema_version": SCHEMA_VERSION,
            "made_by": f"prosparse {__version__}",
            "model": header["model"],
            "text": {**header["text"], "tokens": counts.tokens, "windows": int(counts.windows[0])},
            "settings": {**header["settings"], "share": header["share"], "union_sizes": list(UNION_SIZES)},
            "mean": mean_metrics(layers) if layers else None,
            "layers": layers,
            "predictor": predictor_metrics(counts) if predicted else None,
            "stability": self._extra.get("stability"),
            "threshold_sweep": self._extra.get("threshold_sweep"),
            "cett": self._extra.get("cett"),
        }


def merge(folders: Sequence[str | Path]) -> Report:
    """The report of shares that were measured apart, equal bit for bit to that of all at once.

    Args:
        folders: where each share was saved; together all shares, each once.

    Raises:
        MissingFileError: a folder without counts.
        UserError: parts of different models, texts or settings, a share twice, or one that is missing.
    """
    parts = {Path(folder): Report.load(folder) for folder in folders}
    if not parts:
        raise UserError("measure: nothing to merge; give the folders of all shares")
    first_folder, part = next(iter(parts.items()))
    first, header = part.counts, part.header
    seen: dict[int, Path] = {}
    total = Counts.zeros(first.layers, first.neurons, first.window)
    for folder, part in parts.items():
        own = part.header
        for key in ("model", "settings", "text"):
            if own[key] != header[key]:
                raise UserError(f"measure: {folder} is of another {key} than {first_folder}; merge shares of one run")
        number, of = own["share"]
        if of != header["share"][1] or number in seen:
            what = f"also in {seen[number]}" if number in seen else f"not of {header['share'][1]}"
            raise UserError(f"measure: {folder} holds share {number} of {of}, {what}; give every share once")
        seen[number] = folder
        total.add(part.counts)
    of = header["share"][1]
    missing = ", ".join(str(number) for number in range(1, of + 1) if number not in seen)
    if missing:
        raise UserError(f"measure: of {of} shares these are missing: {missing}; measure them, then merge")
    return Report(total, {**header, "share": [1, 1]})
