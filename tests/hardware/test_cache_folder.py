"""Folders that a cache cannot be in: everything goes on without it, and says so."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from prosparse.engine.plan_cache import PlanCache
from prosparse.hardware import KeptTimes, Times, cached
from prosparse.machine import cache_folder

TIMES = Times((0.0, 0.1), (1.0, 1.0), (1.1, 0.9))


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that the system refuses, as it refuses another user's folder: also to root, who runs these tests."""
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path / ("long" * 100)))


def test_times_are_measured_anew(unreadable: None, caplog: pytest.LogCaptureFixture) -> None:
    times = KeptTimes([], 64, {}, lambda *asked: TIMES)
    assert times.known(1) is None
    assert times.measured(1) == times.known(1) == TIMES
    assert "they are measured again" in caplog.text and "PROSPARSE_CACHE names another folder" in caplog.text


def test_a_machine_and_plans_are_made_anew(unreadable: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prosparse")
    assert cached._read(cached.cache_file({})) is None and "measuring again" in caplog.text
    cache = PlanCache("model", "content")
    assert cache.profile() is None and cache.plan("key") is None and "it is made again" in caplog.text


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PROSPARSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cache_folder() == tmp_path / f"prosparse-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/prosparse")
