"""The load subject: its rows hang together, and its children measure what they say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_engine import make_model

from prosparse.bench import load as subject
from prosparse.bench.load import CONTEXT, PROMPTS, compare_load
from prosparse.bench.table import render
from prosparse.errors import UserError
from prosparse.weights import convert


@pytest.fixture(scope="module")
def row() -> dict:
    return compare_load("tiny", formats=("bf16",), repeat=1)[0]


def test_the_row_of_a_format(row):
    assert (row["subject"], row["shape"], row["mode"], row["weights"], row["calls"]) == (
        "load",
        "tiny",
        "exact",
        "bf16",
        1,
    )
    loading = row["loading"]
    assert loading["times_read"] == pytest.approx(loading["load_ms"] / loading["read_ms"], rel=0.1)
    assert row["fraction_of_floor"] == pytest.approx(1 / loading["times_read"], rel=0.1)
    assert all(loading[f"ttft_{n}_ms"] > 0 for n in PROMPTS)
    assert loading["ttft_512_ms"] > loading["ttft_16_ms"]


def test_memory_is_that_of_a_process_of_its_own(row):
    loading = row["loading"]
    assert 0 < loading["weight_bytes"] <= row["bytes"] and loading["peak_bytes"] > 0
    whole = loading["weight_bytes"] + loading["cache_bytes"]
    assert loading["times_weights_and_cache"] == pytest.approx(loading["peak_bytes"] / whole, abs=0.001)


def test_a_converted_folder_holds_what_its_file_does(tmp_path, threads):
    source = make_model(tmp_path / "source", max_position=2 * CONTEXT, hidden=128, head_dim=32, neurons=256)
    folder = convert(source, tmp_path / "int4", "int4")
    found = subject._watched(folder, 1)
    assert 0.9 * found["file_bytes"] < found["weight_bytes"] < found["file_bytes"]
    assert found["cache_bytes"] == 2 * 2 * 2 * 32 * CONTEXT * 2  # keys and values, layers, kv heads, bf16
    timed = subject._timed(folder, 1)
    assert set(timed) == {"read_s", "load_s", "ttft_16_s", "ttft_512_s"} and min(timed.values()) > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_is_seen_although_it_is_gone_at_the_end():
    before = subject._anonymous_bytes()
    with subject._peak() as peak:
        torch.ones(64 * 2**20, dtype=torch.uint8).sum()
        block = torch.ones(64 * 2**20, dtype=torch.uint8)
        subject.time.sleep(0.1)
        del block
    assert peak() - before > 50 * 2**20


def test_what_is_refused():
    with pytest.raises(UserError, match="bench: repeat must be at least 1, got 0"):
        compare_load("tiny", repeat=0)


def test_quantising_on_load_is_timed(tmp_path, threads):
    folder = make_model(tmp_path / "source", max_position=2 * CONTEXT)
    assert subject._quantised(folder, 1, "int4")["quantised_gb_s"] > 0


def test_a_table_for_a_person(row):
    console = Console(width=140, file=io.StringIO())
    console.print(render([row]))
    shown = console.file.getvalue()
    assert shown.startswith("load tiny") and "bf16" in shown and f"{row['loading']['times_read']:.1f}" in shown
