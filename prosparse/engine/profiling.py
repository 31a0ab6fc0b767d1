"""A Profile from the packaged text, for those who have none: the part of `prosparse profile` that placement needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..plan import fingerprint
from ..weights.neuron_profile import Profile
from .engine import Engine
from .tokenizer import Tokenizer
from .watch import open_ffns, read_window, watched
from .windows import CALIBRATION, cut, read_text

TOKENS = 8192  # enough for an order: a neuron's frequency is known to 1.1 % of the tokens or better
WINDOW = 512
LONGEST = 5  # characters that a token stands for, or fewer


def profiled_windows(tokenizer: Tokenizer, context: int) -> Tensor:
    """What is read for a profile, [windows, tokens] int64, by a model of this context."""
    documents = read_text(CALIBRATION)
    every = max(1, sum(map(len, documents)) // (TOKENS * LONGEST))  # splitting all into tokens would take the most time
    return cut(documents[::every], tokenizer, min(WINDOW, context), TOKENS).inputs


def profile_neurons(engine: Engine, content: str, progress: Callable[[int, int], None] | None = None) -> Profile:
    """Counts of active neurons, act(gate) * up not zero, over about `TOKENS` tokens of the calibration excerpt.

    Args:
        engine: the model, on one device.
        content: `content_key` of its weights.
        progress: called with (tokens done, tokens in all).

    Raises:
        UnsupportedError: its FFNs cannot be looked into.
    """
    config, windows = engine.config, profiled_windows(engine.tokenizer, engine.context)
    counts = torch.zeros(config.layers, config.neurons, dtype=torch.int64)

    def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> None:
        counts[layer] += (h != 0).sum(0).cpu()

    decoder = watched(engine.decoder, open_ffns(engine), view)
    for done, window in enumerate(windows):
        if progress is not None:
            progress(done * windows.shape[1], windows.numel())
        for _ in read_window(engine, decoder, window):
            pass
    if progress is not None:
        progress(windows.numel(), windows.numel())
    return Profile(counts, windows.numel(), fingerprint(config), content, CALIBRATION.name)
