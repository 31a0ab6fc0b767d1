"""The examples of the documentation run, on the packaged model."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODEL = str(ROOT / "prosparse" / "assets" / "relu-llama-14m")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "docs" / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_three_lines(run: Callable[..., str]) -> None:
    text = run("three_lines.py", MODEL, "Once upon a time")
    assert text.startswith("Once upon a time") and len(text) > 50


def test_dense_against_sparse(run: Callable[..., str]) -> None:
    text = run("dense_against_sparse.py", MODEL, "Once upon a time", "16", "float32")
    assert "same tokens: True" in text
    assert re.search(r"dense [\d.]+ tokens/s, sparse [\d.]+ tokens/s, ratio [\d.]+", text)


def test_activation_sparsity(run: Callable[..., str]) -> None:
    text = run("activation_sparsity.py", MODEL, "Once upon a time", "The king said")
    shares = [float(share) for share in re.findall(r"layer +\d+ +([\d.]+)%", text)]
    assert len(shares) % 2 == 0 and len(shares) >= 4 and all(50 < share < 100 for share in shares)
    assert text.count("39 tokens") == 2


@pytest.mark.parametrize(("weights", "most", "share"), [("int8", 0.01, 0.75), ("int4", 0.3, 0.6)])
def test_quantised(run: Callable[..., str], weights: str, most: float, share: float) -> None:
    text = run("quantised.py", MODEL, "Once upon a time", weights)
    found = re.search(rf"([\d.]+) MB before, ([\d.]+) MB in {weights}; KL divergence ([\d.]+) nats", text)
    before, after, kl = map(float, found.groups())
    assert text.startswith("Once upon a time") and 0 <= kl < most and after < share * before
