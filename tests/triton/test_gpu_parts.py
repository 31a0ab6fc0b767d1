"""Every part of `make gpu-check` that measures, at sizes of nothing and by the host's clock.

What runs on a GPU runs here: on one, or in the interpreter's process (see `test_interpreted`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time

import pytest
import torch
from steps_by_hand import CalledAgain
from triton_backend import gpu_backends

from prosparse.bench.row import KEYS
from prosparse.config.shapes import shape
from prosparse.hardware import PRESETS
from prosparse.weights.synthetic import matrices

if not gpu_backends():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from prosparse.bench.gpu import hybrid, ops, parts, subjects, tokens, variants  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CONFIG = dataclasses.replace(
    shape("tiny"), layers=1, hidden=32, neurons=48, heads=2, kv_heads=1, head_dim=16, vocab=40, max_position=64
)


class HostClock:
    """Calls again what was recorded, and looks at the host's clock."""

    warm_s = 0.0

    def record(self, call, calls):
        return lambda: [call(number) for number in range(min(calls, 2))]

    def time(self, function):
        began = time.perf_counter()
        function()
        return (time.perf_counter() - began) * 1e6


@pytest.fixture
def setting(monkeypatch, caplog):
    monkeypatch.setattr(matrices, "BLOCK", 1_048_583)
    monkeypatch.setattr(tokens, "TOKENS", 1)
    if INTERPRETED:
        monkeypatch.setattr(tokens, "can_overlap", lambda gpu: True)
    monkeypatch.setattr(ops, "CONTEXTS", (32,))
    monkeypatch.setattr(variants, "ROWS", variants.ROWS[:1])
    monkeypatch.setattr(variants, "DOWNS", variants.DOWNS[:1])
    monkeypatch.setattr(variants, "ATTENDS", variants.ATTENDS[:1])
    monkeypatch.setattr(variants, "PROGRAMS", variants.PROGRAMS[:1])
    caplog.set_level(logging.INFO)
    rows = []
    here = {"device": torch.device("cpu"), "clock": HostClock(), "new_graph": CalledAgain} if INTERPRETED else {}
    made = subjects.Setting(rows.append, rounds=1, cold=2**16, **here)
    made.rows = rows
    return made


@pytest.mark.parametrize(
    ("measure", "fmt"),
    [(ops.ops, "bf16"), (tokens.tokens, "int8"), (variants.variants, "bf16")],
    ids=["ops", "tokens", "variants"],
)
def test_nothing_fails(setting, measure, fmt, caplog):
    todo = dict(measure(setting, "minicpm-s-1b", CONFIG, fmt))
    assert subjects.each(todo), caplog.text
    assert setting.rows and all(tuple(row) == KEYS for row in setting.rows)
    assert {row["device"] for row in setting.rows} == {"cuda"} and {row["weights"] for row in setting.rows} >= {fmt}
    assert not [record for record in caplog.records if "Error" in record.message], caplog.text
    if measure is tokens.tokens and INTERPRETED:
        assert [(row["mode"], "overlap" in row["note"]) for row in setting.rows] == [
            ("dense", False), ("dense", False), ("dense", True), ("exact", False), ("exact", False), ("exact", True)
        ]  # fmt: skip
    if measure is ops.ops:
        found = {(row["subject"], row["mode"]) for row in setting.rows}
        assert {("ffn_23", "exact"), ("ffn_4", "exact"), ("ffn_4", "cublas"), ("glu_active", "exact")} <= found
        assert {row["subject"] for row in setting.rows} >= {"linear", "ffn", "gate_select", "attend"}


def test_a_gpu_and_a_cpu(setting, monkeypatch, caplog):
    """With a machine on which sharing pays at this size, and a budget that only leaves room for a part."""
    machine = dataclasses.replace(
        PRESETS["8gb-pcie3"], sync_s=0.0, gpu_launch_s=0.0, to_gpu=1e12, to_cpu=1e12, cpu_call_s=1e-3
    )
    monkeypatch.setattr(hybrid, "machine_here", lambda: machine)
    monkeypatch.setattr(hybrid, "budget_of", lambda case: case.problem.fixed + 50_000)
    monkeypatch.setattr(hybrid, "check_held", lambda *given: None)  # memory is reserved in pieces of megabytes
    for name, value in {"START": 4, "TURN": 1, "LEAD": 0}.items():  # every token takes seconds in the interpreter
        monkeypatch.setattr(hybrid, name, value)
    config = dataclasses.replace(CONFIG, layers=2, neurons=192)
    assert subjects.each(hybrid.hybrid(setting, "minicpm-s-1b", config, "bf16")), caplog.text
    placed, split = setting.rows
    assert placed["loading"]["cold"]["layers"]["shared"] > 0 == split["loading"]["cold"]["layers"]["shared"]
    assert placed["simulated"]["graphs"] > split["simulated"]["graphs"]


def test_a_part_measures_the_formats_that_are_asked_for(setting):
    part = subjects.over("minicpm-s-1b", ("bf16", "int8"), lambda *args: asked.append(args[-1]) or {})
    for formats, expected in (subjects.FORMATS, ["bf16", "int8"]), (("int8",), ["int8"]), (("int4",), []):
        asked: list[str] = []
        assert part(dataclasses.replace(setting, formats=formats)) and asked == expected


def test_the_environment_and_zeros(setting, caplog):
    assert parts.environment(setting)
    assert [row["mode"] for row in setting.rows] == ["read", "empty launch in a graph"]
    assert '"triton"' in caplog.text
    (name, measure), *_ = ops.ffns(setting, "minicpm-s-1b", CONFIG, "bf16").items()
    assert name == "ffn bf16 at 0.0" and subjects.each({name: measure}), caplog.text
    assert {row["mode"] for row in setting.rows[2:]} == {"cublas", "dense", "exact"}


@pytest.mark.parametrize("compiled", [False, True])
def test_transformers_beside(setting, compiled, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert subjects.each(tokens.beside(compiled, setting, "minicpm-s-1b", CONFIG, "bf16")), caplog.text
    (row,) = setting.rows
    assert row["mode"] == ("transformers-compile" if compiled else "transformers-eager") and row["bytes"] > 0
    assert row["note"].endswith("static cache")
    if compiled:
        monkeypatch.setitem(tokens.counters["inductor"], "cudagraph_skips", 1)
        assert subjects.each(tokens.beside(compiled, setting, "minicpm-s-1b", CONFIG, "bf16")), caplog.text
        assert setting.rows[-1]["note"].endswith("but without its CUDA graph")


def test_what_fails_is_said_and_the_others_go_on(setting, caplog):
    def fail():
        raise RuntimeError("out of something")

    ran = []
    assert not subjects.each({"first": fail, "second": lambda: ran.append(1)}) and ran == [1]
    assert "first FAILED: RuntimeError: out of something" in caplog.text
