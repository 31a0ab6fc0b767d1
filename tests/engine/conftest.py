"""Model folders with tokenizers trained for the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from trained_tokenizers import byte_level, sentencepiece_like


@pytest.fixture(scope="session")
def backends() -> dict[str, str]:
    """tokenizer.json of each kind."""
    return {"byte_level": byte_level().to_str(), "sentencepiece": sentencepiece_like().to_str()}


@pytest.fixture
def folder_of(backends: dict[str, str], tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder: tokenizer.json of a kind, config.json, tokenizer_config.json where settings are given."""

    def make(kind: str, settings: dict | None = None, config: dict | None = None) -> Path:
        (tmp_path / "tokenizer.json").write_text(backends[kind], encoding="utf-8")
        (tmp_path / "config.json").write_text(json.dumps(config or {}))
        if settings is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return tmp_path

    return make
