"""Conversion to int8 and int4 whose rounding makes up for its own errors, as far as a calibration text shows them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import ModelConfig
from ...engine.tokenizer import Tokenizer
from ...errors import UserError
from ...weights import convert
from ...weights.convert import Source
from ...weights.folder import resolve_model
from ..measure.stream import CALIBRATION, text_windows
from .rounder import Rounder

TOKENS = 16384
LEAST_TOKENS = 1024  # of fewer the moments say more about the text than about the model
WINDOW = 512  # tokens, where the context allows
SPREAD = 16  # windows looked at for each one used, at most: these are spread evenly over the beginning of the text


def convert_calibrated(
    source: str | Path,
    destination: str | Path,
    weights: str = "int4",
    lm_head: str = "auto",
    text: str | Path | None = None,
    *,
    tokens: int = TOKENS,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model's matrices as int8 or int4, rounded for the inputs that they have on a text.

    In everything else it is `prosparse.weights.convert`, and so is the folder. Memory holds one layer in float32, the
    second moments of its inputs, and the residual of the calibration tokens.

    Args:
        source, destination, weights, lm_head, overwrite, progress: as for `prosparse.weights.convert`.
        text: a UTF-8 file, or a folder of .txt and .md files; None is the packaged calibration excerpt.
        tokens: about how many of the text to use.

    Returns:
        the destination.

    Raises:
        UserError: neither format is int8 or int4, the source is rounded already, a text that is too short or cannot be
            used, or what `prosparse.weights.convert` refuses.
        MachineError: the disk is full or cannot be written, or another process writes the same destination.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < LEAST_TOKENS:
        raise UserError(
            f"convert: calibration tokens must be a whole number of at least {LEAST_TOKENS}, got {tokens!r}"
        )
    folder = resolve_model(source, pickled=True)

    def rounding(opened: Source, config: ModelConfig) -> Rounder:
        windows, about = calibration(text, Tokenizer.load(folder, config), config, tokens)
        return Rounder(opened, config, windows, about)

    return convert(folder, destination, weights, overwrite, progress, lm_head, rounding=rounding)


def calibration(
    text: str | Path | None, tokenizer: Tokenizer, config: ModelConfig, tokens: int
) -> tuple[Tensor, dict[str, Any]]:
    """Windows of a text, [windows, length] int64, and what is to be said about them."""
    length = min(WINDOW, config.max_position)
    count = -(-tokens // length)
    found = text_windows(CALIBRATION if text is None else text, tokenizer, length)
    seen = list(islice(found, SPREAD * count))
    chosen = seen[:: max(1, len(seen) // count)][:count]
    if len(chosen) * length < LEAST_TOKENS:
        raise UserError(
            f"convert: the calibration text {found.name} has {len(chosen) * length} tokens in whole windows of "
            f"{length}; at least {LEAST_TOKENS} are needed: give a longer one"
        )
    windows = torch.stack(chosen)
    digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16]
    return windows, {"calibration": found.name, "tokens": windows.numel(), "digest": digest}
