"""Texts, folders and token batches as windows, and what is said about those that cannot be used."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import write_hand_made
from torch import Tensor, nn

import prosparse
from prosparse.engine import Engine, load
from prosparse.errors import MachineError, MissingFileError, UnsupportedError, UserError
from prosparse.study import CALIBRATION, HELD_OUT
from prosparse.study.measure import stream
from prosparse.study.measure.stream import batch_windows, text_windows
from prosparse.study.windows import cut, read_text

TEXT = "Happy families are all alike; élan vital, 你好.\n" * 40


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(write_hand_made(tmp_path_factory.mktemp("hand") / "made"), weights="fp32")


def windows_of(text: Path, engine: Engine, length: int = 10) -> list[list[int]]:
    return [window.tolist() for window in text_windows(text, engine.tokenizer, length)]


def test_a_file_is_read_in_pieces_to_the_same_windows(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    ids = engine.tokenizer.encode(TEXT, add_special=False)
    expected = [[1, *ids[at : at + 9]] for at in range(0, len(ids) - 8, 9)]  # each begins with BOS
    assert windows_of(tmp_path / "a.txt", engine) == expected
    monkeypatch.setattr(stream, "PIECE", 100)
    seen: list[tuple[int, int]] = []
    found = text_windows(tmp_path / "a.txt", engine.tokenizer, 10, lambda *step: seen.append(step))
    assert [window.tolist() for window in found] == expected
    assert (found.count, found.dropped) == (len(expected), len(ids) % 9)
    size = (tmp_path / "a.txt").stat().st_size
    assert seen[-1] == (size, size) and len(seen) > 10


def test_a_folder_is_its_files_in_order(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "bb"), ("sub/c.md", "cc"), ("a.txt", "aa"), ("d.json", "no")):
        (tmp_path / name).write_text(text)
    ids = [i for window in windows_of(tmp_path, engine, 4) for i in window[1:]]
    assert engine.tokenizer.decode(ids) == "aabbcc"
    assert ids.count(2) == 3  # every file ends a sequence


def test_packaged_excerpts_are_cut_as_perplexity_cuts_them() -> None:
    engine = load()
    found = torch.stack(list(text_windows(HELD_OUT, engine.tokenizer, 512)))
    assert torch.equal(found, cut(read_text(None), engine.tokenizer, 512, 10**9).inputs)
    assert text_windows(CALIBRATION, engine.tokenizer, 512).name == "calibration.txt.xz"


def test_rows_of_token_batches_are_sequences() -> None:
    batches = [torch.arange(10).view(2, 5), [[5, 6, 7, 8, 9]], torch.arange(5)]
    rows = batch_windows(batches, None, 64, 16)
    assert [row.tolist() for row in rows] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
    cut_up = batch_windows(batches, 2, 64, 16)
    assert [row.tolist() for row in cut_up][:3] == [[0, 1], [2, 3], [5, 6]]
    assert cut_up.dropped == 4


def test_memory_does_not_grow_with_the_text(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIECE", 10_000)
    peaks = []
    for times in (10, 100):
        (tmp_path / "long.txt").write_text(TEXT * times)
        tracemalloc.start()
        for _ in text_windows(tmp_path / "long.txt", engine.tokenizer, 64):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, MissingFileError, "text.txt: cannot read the text"),
        (b"", UserError, "text.txt holds no text; give a file"),
        (b"short", UserError, "text.txt has 5 tokens, fewer than one window of 64; give more text or a smaller"),
        (b"caf\xe9 " * 100, UserError, "text.txt: not UTF-8 text"),
    ],
)
def test_text_that_cannot_be_used(
    engine: Engine, tmp_path: Path, content: bytes | None, error: type[UserError], message: str
) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(error, match=message):
        prosparse.measure(engine, tmp_path / "text.txt", state=tmp_path / "out" / "state")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_text(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no text, expected .txt or .md files"):
        prosparse.measure(engine, tmp_path)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "there are no token batches"),
        ([[[1, 2], [3]]], {}, "token batch 0 is no table of token ids"),
        ([torch.rand(2, 3)], {}, r"must be whole numbers, \[sequences, tokens\], got torch.float32 of shape \(2, 3\)"),
        ([[[1, 2, 259]]], {}, "holds ids from 1 to 259; this model knows 0 to 258"),
        ([[[1, 2, 3]], [[1, 2]]], {}, "token batch 1 has rows of 2 tokens, the first has 3; pass window="),
        ([[[1] * 65]], {}, "rows of 65 tokens do not fit, from 2 to 64 do"),
        ([[[1, 2, 3]]], {"window": 4}, "token batches has 3 tokens, fewer than one window of 4"),
        ([[[1, 2]]], {"window": 65}, "window must be from 2 to the context of 64 tokens, got 65"),
        ([[[1, 2]]], {"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ([[[1, 2]]], {"near_zero": -1.0}, "near_zero must be at least 0"),
        ([[[1, 2]]], {"near_zero": float("nan")}, "near_zero must be at least 0"),
        ([[[1, 2]]], {"cett": [1.5]}, "cett must be at least 0 and below 1, got 1.5"),
        ([[[1, 2]]], {"share": (3, 2)}, r"share must be \(number, of\)"),
    ],
)
def test_arguments_that_cannot_be_used(engine: Engine, batches: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prosparse.measure(engine, batches, **options)


def test_models_that_cannot_be_measured(engine: Engine) -> None:
    with pytest.raises(UserError, match="expected an Engine .* got str; load a folder"):
        prosparse.measure("folder", [[[1, 2]]])
    with pytest.raises(UnsupportedError, match="Sequential has no FFN that is known"):
        prosparse.measure(nn.Sequential(nn.Linear(2, 2)), [[[1, 2]]])


def test_a_full_disk_leaves_nothing(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = prosparse.measure(engine, [torch.ones(3, 8, dtype=torch.int64)])
    report.save(tmp_path / "before", plots=False)
    old = (tmp_path / "before" / "measure.json").read_bytes()
    synced = 0

    def full(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for folder in ("before", "new"):
        synced = 0
        with pytest.raises(MachineError, match="cannot be written: the disk is full; choose another destination"):
            report.save(tmp_path / folder, plots=False)
    assert sorted(path.name for path in (tmp_path / "before").iterdir()) == [
        "counts.safetensors",
        "measure.html",
        "measure.json",
    ]
    assert (tmp_path / "before" / "measure.json").read_bytes() == old
    assert list((tmp_path / "new").iterdir()) == []


def test_tokens_are_a_tensor_of_the_window(engine: Engine) -> None:
    ids: Tensor = next(iter(batch_windows([[[1, 2]]], None, 64, 16)))
    assert ids.dtype == torch.int64 and ids.shape == (2,)
