"""From text files to a tokenizer, a stream of training tokens, and two untrained texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from make_excerpts import END, TRAINED_SHARE, read_books, split
from make_excerpts import opening as opening_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

PAD = "<|pad|>"


def find_files(sources: list[Path]) -> list[Path]:
    """The text files of `sources`: files as they are, folders as their *.txt and *.txt.xz in order of name."""
    files: list[Path] = []
    for source in sources:
        inside = sorted([*source.glob("*.txt"), *source.glob("*.txt.xz")]) if source.is_dir() else [source]
        if not inside:
            raise SystemExit(f"--text: {source} holds no *.txt and no *.txt.xz file; name a folder or files of text")
        files += inside
    return files


def trained_paragraphs(book: str) -> list[str]:
    """The paragraphs that training reads: all but the tail that `make_excerpts.untrained_tail` cuts."""
    paragraphs = book.split("\n")
    return [f"{paragraph}\n" for paragraph in paragraphs[: int(len(paragraphs) * TRAINED_SHARE)]]


def read_all(files: list[Path]) -> list[str]:
    return [book for path in files for book in read_books(path)]


def untrained_texts(books: list[str]) -> dict[str, str]:
    """{"calibration": text, "held_out": text} from the books' tails; every third book is held out."""
    return split(books, {opening_of(book): True for book in books})


def train_tokenizer(books: list[str], vocab: int, sample_characters: int = 40_000_000) -> Tokenizer:
    """A byte-level BPE with END as token 0 and PAD as token 1, fitted on every third paragraph that training reads."""

    def sample() -> Iterator[str]:
        taken = 0
        for book in books:
            for paragraph in trained_paragraphs(book)[::3]:
                taken += len(paragraph)
                if taken > sample_characters:
                    return
                yield paragraph

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


def training_tokens(tokenizer: Tokenizer, books: list[str]) -> np.ndarray:
    """The trained parts of all books as one stream, [tokens] uint16, each book followed by END."""
    if tokenizer.get_vocab_size() > 1 << 16:
        raise SystemExit(f"tokenizer: {tokenizer.get_vocab_size()} tokens do not fit 16 bits; use at most 65536")
    end = tokenizer.token_to_id(END)
    parts = []
    for book in books:
        encoded = tokenizer.encode_batch(trained_paragraphs(book))
        parts.append(np.array([i for piece in encoded for i in piece.ids] + [end], np.uint16))
    return np.concatenate(parts)


def text_windows(tokenizer: Tokenizer, text: str, length: int, count: int | None = None) -> Tensor:
    """Consecutive windows of a text, [windows, length + 1]; with `count`, as many of them, spread evenly."""
    ids = torch.tensor(tokenizer.encode(text).ids)
    available = (len(ids) - 1) // length
    if available < 1:
        raise SystemExit(f"untrained text: {len(ids)} tokens are less than one window of {length}; give more text")
    stride = max(1, available // count) if count else 1
    starts = torch.arange(0, available, stride)[:count] * length
    return ids[starts[:, None] + torch.arange(length + 1)]


class Windows:
    """Training windows in an order that a seed fixes: every window once an epoch, shifted by some tokens each epoch."""

    def __init__(self, stream: np.ndarray, length: int, seed: int) -> None:
        self.stream = torch.from_numpy(stream.astype(np.int32))
        self.length = length
        self.seed = seed
        self.per_epoch = (len(stream) - 1) // length - 1
        if self.per_epoch < 1:
            raise SystemExit(f"--text: {len(stream)} tokens are less than two windows of {length}; give more text")
        self._epoch, self._order, self._shift = -1, torch.empty(0), 0

    def take(self, start: int, count: int) -> Tensor:
        """Windows `start` to `start + count` of the endless order, [count, length + 1] int64."""
        rows = []
        for index in range(start, start + count):
            epoch, place = divmod(index, self.per_epoch)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self.seed + epoch)
                self._order = torch.randperm(self.per_epoch, generator=generator)
                self._shift = int(torch.randint(self.length, (1,), generator=generator))
                self._epoch = epoch
            first = int(self._order[place]) * self.length + self._shift
            rows.append(self.stream[first : first + self.length + 1])
        return torch.stack(rows).long()
