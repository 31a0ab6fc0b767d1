"""A text as windows of tokens to predict.

A window makes `length` predictions: its inputs are the tokens before its targets, so the first target is predicted from
one token and the last from `length`. Windows are consecutive. Where the tokenizer puts a BOS before a prompt, each
window begins with one as its first input, since such models misbehave without; else with the token before its targets.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MissingFileError, UserError
from .tokenizer import Tokenizer

HELD_OUT = Path(__file__).parent.parent / "assets" / "text" / "held_out.txt.xz"
CALIBRATION = HELD_OUT.with_name("calibration.txt.xz")
DOCUMENT_END = "<|endoftext|>"  # in the packaged excerpts
MAX_TEXT_BYTES = 64 * 2**20  # more than any text that perplexity is quoted on; its tokens take ten times as much memory


@dataclass(frozen=True)
class Windows:
    """What is measured of a text.

    Args:
        inputs, targets: [windows, length] int64.
        target_bytes: UTF-8 bytes of text behind each target, [windows, length] int64; 0 for special tokens.
        stride: every how many-th window of the text these are.
    """

    inputs: Tensor
    targets: Tensor
    target_bytes: Tensor
    stride: int


def read_text(path: str | Path | None) -> list[str]:
    """The documents of a text file, or of a packaged excerpt, `HELD_OUT` or `CALIBRATION`; None is the first of them.

    Raises:
        MissingFileError: the file cannot be read.
        UserError: it is empty, not UTF-8, or larger than `MAX_TEXT_BYTES`.
    """
    if path is None or path in (HELD_OUT, CALIBRATION):
        text = lzma.decompress(Path(path or HELD_OUT).read_bytes()).decode()
        return [document for document in text.split(DOCUMENT_END) if document]
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as fault:
        raise MissingFileError(f"{path}: cannot read the text ({fault.strerror}); check the path") from fault
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{path}: larger than {MAX_TEXT_BYTES >> 20} MiB; measure on a part of it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise UserError(f"{path}: not UTF-8 text (byte {fault.start}); convert it, for example with iconv") from None
    if not text.strip():
        raise UserError(f"{path}: holds no text; give a file with some paragraphs of prose")
    return [text]


def cut(documents: list[str], tokenizer: Tokenizer, length: int, predictions: int) -> Windows:
    """About as many predictions as asked for, in windows spread evenly over the text.

    Args:
        documents: each but a single one is followed by the end-of-sequence token.
        tokenizer: of the model.
        length: predictions per window; less where the text is shorter.
        predictions: how many in all, rounded up to whole windows.

    Raises:
        UserError: a text of fewer than two tokens.
    """
    ids, sizes = _encode(documents, tokenizer)
    prefix = 1 if begins_with_bos(tokenizer) else 0
    usable = len(ids) - 1 + prefix
    if usable < 1:
        raise UserError("perplexity: the text has fewer than two tokens, so there is nothing to predict; give more")
    length = min(length, usable)
    count = usable // length
    stride = max(1, count * length // predictions)
    targets = torch.arange(0, count, stride)[:, None] * length + torch.arange(length) + 1 - prefix
    inputs = ids[targets - 1]
    if prefix:
        assert tokenizer.bos_id is not None
        inputs[:, 0] = tokenizer.bos_id
    return Windows(inputs, ids[targets], sizes[targets], stride)


def _encode(documents: list[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    end = min(tokenizer.eos_ids, default=None) if len(documents) > 1 else None
    ids: list[int] = []
    sizes: list[int] = []
    for document in documents:
        own_ids, own_sizes = tokenizer.encode_sized(document)
        ids += own_ids
        sizes += own_sizes
        if end is not None:
            ids.append(end)
            sizes.append(0)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64)


def begins_with_bos(tokenizer: Tokenizer) -> bool:
    frame = tokenizer.encode("")
    return bool(frame) and frame[0] == tokenizer.bos_id
