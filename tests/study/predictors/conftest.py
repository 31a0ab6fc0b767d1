"""Tiny models whose gates can be guessed, and a text for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_engine import make_model
from tiny_model import write_weights

from prosparse.engine import Engine, load

TEXT = "The quick brown fox jumps over the lazy dog; all happy families are alike, and no two snowflakes. " * 12
RANK = 4
FILE = "model.safetensors"


def with_low_rank_gate(folder: Path, lean: float = 2.0) -> Path:
    """Replace the gates of a tiny model by matrices of rank `RANK`; neurons lean towards being closed."""
    found = load_file(folder / FILE)
    rng = torch.Generator().manual_seed(9)
    for name, tensor in found.items():
        if name.endswith("gate_proj.weight"):
            neurons, hidden = tensor.shape
            left = torch.randn(neurons, RANK, generator=rng)
            found[name] = (left @ torch.randn(RANK, hidden, generator=rng) * lean / hidden**0.5).to(tensor.dtype)
    write_weights(folder, found)
    return folder


@pytest.fixture(scope="session")
def guessable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with gates of rank 4, FATReLU, so that few neurons are active; with its text beside it."""
    folder = make_model(
        tmp_path_factory.mktemp("models") / "guessable", max_position=64, neurons=160, family="sparsellama",
        hidden_act_param=2.0,
    )  # fmt: skip
    (with_low_rank_gate(folder) / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="session")
def engine(guessable: Path) -> Engine:
    return load(guessable, weights="fp32")


@pytest.fixture(scope="session")
def text(guessable: Path) -> Path:
    return guessable / "text.txt"
