"""A text, or batches of tokens, as windows of one length: read piece by piece, so that no text is too long."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.tokenizer import Tokenizer
from ...errors import MissingFileError, UserError
from ..windows import CALIBRATION, DOCUMENT_END, HELD_OUT, begins_with_bos

Progress = Callable[[int, int], None]
SUFFIXES = (".txt", ".md")
PIECE = 1 << 20  # characters of text tokenized at a time, and what is left of the line


@dataclass(frozen=True)
class Encoder:
    """Text to token ids.

    Args:
        encode: ids of a text without any frame.
        bos_id: begins every window, None where the tokenizer puts nothing before a prompt.
        end_id: ends a document, None for nothing.
    """

    encode: Callable[[str], list[int]]
    bos_id: int | None = None
    end_id: int | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        """That of our `Tokenizer`, or of one of transformers."""
        if isinstance(tokenizer, Tokenizer):
            bos_id = tokenizer.bos_id if begins_with_bos(tokenizer) else None
            return cls(lambda text: tokenizer.encode_sized(text)[0], bos_id, min(tokenizer.eos_ids, default=None))

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

        frame = tokenizer("")["input_ids"]
        bos_id = tokenizer.bos_token_id if frame and frame[0] == tokenizer.bos_token_id else None
        return cls(encode, bos_id, tokenizer.eos_token_id)


class Windows:
    """Iterates over windows, [length] int64 each. What is left over at the end of a sequence is dropped.

    Args:
        name: of the text, for reports.
        pieces: (token ids, whether the sequence ends with them).
        length: tokens of a window.
        bos_id: put before every window, as its first token; None for nothing.

    Attributes:
        count: windows so far.
        dropped: tokens that made no whole window, so far.
    """

    def __init__(self, name: str, pieces: Iterator[tuple[Tensor, bool]], length: int, bos_id: int | None) -> None:
        self.name, self.length, self.count, self.dropped = name, length, 0, 0
        self._pieces, self._bos_id = pieces, bos_id
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Names the windows so far: equal for equal tokens."""
        return self._hash.hexdigest()[:16]

    def __iter__(self) -> Iterator[Tensor]:
        prefix = [] if self._bos_id is None else [torch.tensor([self._bos_id])]
        size = self.length - len(prefix)
        rest = torch.empty(0, dtype=torch.int64)
        for ids, ends in self._pieces:
            rest = torch.cat([rest, ids])
            whole = len(rest) // size * size
            for start in range(0, whole, size):
                window = torch.cat([*prefix, rest[start : start + size]])
                self._hash.update(window.numpy().tobytes())
                self.count += 1
                yield window
            rest = rest[whole:]
            if ends:
                self.dropped += len(rest)
                rest = rest[:0]
        self.dropped += len(rest)


def text_windows(text: str | Path, tokenizer: Any, length: int, progress: Progress | None = None) -> Windows:
    """Windows of a text.

    Args:
        text: a UTF-8 file, or a folder whose .txt and .md files are read in the order of their names; or a packaged
            excerpt, `HELD_OUT` or `CALIBRATION`.
        tokenizer: of the model.
        length: tokens of a window, at least 2.
        progress: called with (done, total) bytes of text.

    Raises:
        MissingFileError: no such file or folder, here or while iterating.
        UserError: a folder without text, and while iterating text that is not UTF-8.
    """
    encoder, path = Encoder.of(tokenizer), Path(text)
    packaged = path in (HELD_OUT, CALIBRATION)
    documents = _packaged(path, progress) if packaged else _files(_text_files(path), progress)
    return Windows(path.name, _encoded(documents, encoder), length, encoder.bos_id)


def batch_windows(
    batches: Iterable[Any], length: int | None, context: int, vocab: int, progress: Progress | None = None
) -> Windows:
    """Windows of token batches, each row a sequence of its own.

    Args:
        batches: tensors or nested lists of token ids, [sequences, tokens] or [tokens] each.
        length: tokens of a window; None is the length of the first row, which all others must share.
        context: the longest window the model takes.
        vocab: ids are below it.
        progress: called with (done, total) batches; total is 0 where it is not known.

    Raises:
        UserError: no rows, and while iterating anything but whole numbers in the vocabulary.
    """
    rows = _rows(batches, vocab, length is None, progress)
    if length is not None:
        return Windows("token batches", rows, length, None)
    first = next(rows, None)
    if first is None:
        raise UserError("measure: there are no token batches; give tensors of token ids, [sequences, tokens]")
    length = len(first[0])
    if not 2 <= length <= context:
        raise UserError(
            f"measure: rows of {length} tokens do not fit, from 2 to {context} do; pass window= to cut them"
        )

    def all_rows() -> Iterator[tuple[Tensor, bool]]:
        yield first
        yield from rows

    return Windows("token batches", all_rows(), length, None)


def _rows(
    batches: Iterable[Any], vocab: int, same_length: bool, progress: Progress | None
) -> Iterator[tuple[Tensor, bool]]:
    total = len(batches) if isinstance(batches, Sequence | Tensor) else 0
    expected = None
    for number, batch in enumerate(batches):
        try:
            ids = torch.as_tensor(batch)
        except (TypeError, ValueError, RuntimeError) as fault:
            raise UserError(f"measure: token batch {number} is no table of token ids ({fault}); pad nothing") from None
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool or ids.dim() not in (1, 2):
            raise UserError(
                f"measure: token batch {number} must be whole numbers, [sequences, tokens], got {ids.dtype} of shape "
                f"{tuple(ids.shape)}"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UserError(
                f"measure: token batch {number} holds ids from {int(ids.min())} to {int(ids.max())}; this model knows "
                f"0 to {vocab - 1}"
            )
        for row in ids.to("cpu", torch.int64).reshape(-1, ids.shape[-1]):
            expected = len(row) if expected is None else expected
            if same_length and len(row) != expected:
                raise UserError(
                    f"measure: token batch {number} has rows of {len(row)} tokens, the first has {expected}; pass "
                    "window= to cut them all to one length"
                )
            yield row, True
        if progress is not None:
            progress(number + 1, total)


def _encoded(documents: Iterator[tuple[str, bool]], encoder: Encoder) -> Iterator[tuple[Tensor, bool]]:
    for text, ends in documents:
        ids = encoder.encode(text)
        if ends and encoder.end_id is not None:
            ids = [*ids, encoder.end_id]
        yield torch.tensor(ids, dtype=torch.int64), False


def _packaged(path: Path, progress: Progress | None) -> Iterator[tuple[str, bool]]:
    text = lzma.decompress(path.read_bytes()).decode()
    done = 0
    for document in text.split(DOCUMENT_END):
        if document:
            yield document, True
        done += len(document) + len(DOCUMENT_END)
        if progress is not None:
            progress(min(done, len(text)), len(text))


def _text_files(text: Path) -> list[Path]:
    if not text.is_dir():
        return [text]
    found = sorted(path for path in text.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{text}: holds no text, expected {' or '.join(SUFFIXES)} files; give another folder")
    return found


def _files(paths: list[Path], progress: Progress | None) -> Iterator[tuple[str, bool]]:
    done = 0
    try:
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            for piece in _pieces(path):
                yield piece, False
                done += len(piece.encode())
                if progress is not None:
                    progress(done, total)
            if len(paths) > 1:
                yield "", True
    except OSError as fault:
        where = fault.filename or paths[0]
        raise MissingFileError(f"{where}: cannot read the text ({fault.strerror}); check the path") from fault


def _pieces(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            while piece := file.read(PIECE) + file.readline(PIECE):
                yield piece
        except UnicodeDecodeError as fault:
            raise UserError(f"{path}: not UTF-8 text ({fault.reason}); convert it, for example with iconv") from None
