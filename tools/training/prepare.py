"""What a run's folder holds before the first step, so that nothing else is needed to go on or to finish."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_excerpts import opening, read_text
from tokenizers import Tokenizer

from . import start
from .export import evaluate
from .run import CHECKPOINT, Run, Settings
from .schedule import Schedule
from .text import Windows, text_windows

TOKENS, TOKENIZER = "tokens.npy", "tokenizer.json"
CALIBRATION, HELD_OUT, BOOKS = "calibration.txt", "held_out.txt", "books.json"
LOG_WINDOWS = 16
REVIVE_WINDOWS = 64


def name_books(books: list[str], table: Path | None) -> list[str]:
    """ "Author: Title" of each book as a books.tsv lists them by their openings; without one, the openings."""
    if table is None:
        return [opening(book) for book in books]
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = {row["opening"]: f"{row['author']}: {row['title']}" for row in rows}
    missing = [opening(book) for book in books if opening(book) not in names]
    if missing:
        raise SystemExit(f"--books: {table} does not list {len(missing)} books, the first opens {missing[0]!r}")
    return [names[opening(book)] for book in books]


def write_folder(
    folder: Path, tokenizer: Tokenizer, stream: np.ndarray, untrained: dict[str, str], books: list[str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER))
    np.save(folder / TOKENS, stream)
    (folder / CALIBRATION).write_text(untrained["calibration"], encoding="utf-8")
    (folder / HELD_OUT).write_text(untrained["held_out"], encoding="utf-8")
    (folder / BOOKS).write_text(json.dumps(books, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def open_run(folder: Path, settings: Settings, schedule: Schedule) -> Run:
    """A run over a folder's tokens, with random weights."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    context = settings.shape.context
    sample = text_windows(tokenizer, read_text(folder / HELD_OUT), context, LOG_WINDOWS)
    windows = Windows(np.load(folder / TOKENS), context, settings.seed)
    return Run(folder, settings, schedule, windows, sample)


def begin(folder: Path, settings: Settings, schedule: Schedule, init: Path | None, revive: float) -> Run:
    """A new run, from `init`'s weights where it is given, with neurons active on less than `revive` tokens made new."""
    run = open_run(folder, settings, schedule)
    if init is not None:
        start.load_folder(run.network, init)
    if revive > 0:
        last = run.windows.per_epoch - REVIVE_WINDOWS
        windows = run.windows.take(max(0, last), min(REVIVE_WINDOWS, run.windows.per_epoch))
        with run.autocast():
            _, counts = evaluate(run.network, windows, settings.micro_windows)
        generator = torch.Generator().manual_seed(settings.seed + 1)
        revived = start.revive(run.network, counts, windows[:, 1:].numel(), revive, generator)
        settings.provenance["revived_neurons"] = revived
    return run


def resume(folder: Path, device: str | None = None) -> Run:
    """The run of a folder as its checkpoint left it, on its device unless told another."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise SystemExit(f"{folder}: no {CHECKPOINT} in it; begin a run with `start`")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    fields = {**state["settings"], "shape": start.Shape(**state["settings"]["shape"])}
    settings = Settings(**{**fields, "device": device or fields["device"]})
    run = open_run(folder, settings, Schedule.from_dict(state["schedule"]))
    run.restore(state)
    return run
