"""The text that predictors are made from, and passes over it.

Every other window is for fitting, the ones between are for thresholds: a margin that is set on the windows that a guess
was fitted to would be too small. Neither is the held-out excerpt, on which predictors are judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...engine import Engine
from ...errors import UserError
from ..watch import View, open_ffns, read_window, watched
from ..windows import CALIBRATION, cut, read_text

WINDOW = 512  # tokens
TOKENS = 20_480  # recall of a margin set on half of them is within 0.2 points of what was asked for on other text
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """Windows of a text.

    Args:
        fit, check: [windows, tokens] int64 each.
        text: its name.
    """

    fit: Tensor
    check: Tensor
    text: str

    @property
    def tokens(self) -> int:
        return self.fit.numel() + self.check.numel()

    @classmethod
    def of(cls, engine: Engine, text: str | Path | None = None, tokens: int = TOKENS) -> Calibration:
        """About so many tokens spread evenly over a text; None is the packaged calibration excerpt.

        Raises:
            MissingFileError, UserError: a text that cannot be read or is too short, or a number that is none.
        """
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 2:
            raise UserError(f"predictor: tokens must be a whole number of at least 2, got {tokens!r}")
        path = CALIBRATION if text is None else Path(text)
        documents = read_text(path)
        found = cut(documents, engine.tokenizer, min(WINDOW, engine.context), tokens).inputs
        if len(found) < 2:  # a short text is halved
            found = cut(documents, engine.tokenizer, max(1, found.shape[1] // 2), tokens).inputs
        if len(found) < 2:
            raise UserError(f"{path}: too short to fit a predictor and to check it; give a text of some pages")
        return cls(found[::2], found[1::2], path.name)


@torch.inference_mode()
def read(engine: Engine, windows: Tensor, view: View, progress: Progress | None = None, what: str = "reading") -> None:
    """Show every FFN of the engine, while it reads windows [windows, tokens], to `view`."""
    decoder = watched(engine.decoder, open_ffns(engine), view)
    for number, window in enumerate(windows):
        for _ in read_window(engine, decoder, window):
            pass
        if progress is not None:
            progress(what, (number + 1) * len(window), windows.numel())
