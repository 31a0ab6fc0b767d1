"""The part `hybrid` of `make gpu-check` with both tiers in the CPU's memory: what it makes, checks and writes."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from shared_by_hand import LaunchesByHand
from steps_by_hand import CalledAgain

from prosparse.bench.row import KEYS
from prosparse.config.shapes import shape
from prosparse.engine.shared_step import SharedStep
from prosparse.errors import MachineError
from prosparse.hardware import PRESETS
from prosparse.kernels import cpu
from prosparse.weights.divide import Cut, Division
from prosparse.weights.synthetic import settle, synthetic_weights

pytest.importorskip("triton")
from prosparse.bench.gpu import halves, hybrid, subjects  # noqa: E402
from prosparse.bench.gpu.report import table  # noqa: E402

CPU = torch.device("cpu")
CONFIG = dataclasses.replace(shape("tiny"), layers=3, neurons=192, vocab=320, max_position=64)
# One on which sharing pays at this size.
MACHINE = dataclasses.replace(
    PRESETS["8gb-pcie3"], context_bytes=0, sync_s=0.0, gpu_launch_s=0.0, to_gpu=1e12, to_cpu=1e12, cpu_call_s=1e-3
)
BY_HAND = partial(SharedStep, launches=LaunchesByHand)
pytestmark = pytest.mark.skipif(not cpu.available(), reason="without the extension the part leaves itself out")


class NoClock:
    warm_s = 0.0

    def record(self, call, calls):
        return lambda: None


class NoProbe:
    nbytes = 1 << 20

    def __init__(self, nbytes, device):
        pass


@pytest.fixture
def setting(monkeypatch, small_probe, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(subjects, "GpuProbe", NoProbe)
    monkeypatch.setattr(hybrid, "machine_here", lambda: MACHINE)
    monkeypatch.setattr(hybrid, "budget_of", lambda case: case.problem.fixed + 200_000)
    rows = []
    made = subjects.Setting(rows.append, 2, 1, device=CPU, clock=NoClock(), new_graph=CalledAgain)
    made.rows = rows
    return made


@pytest.mark.parametrize("tied", [True, False])
def test_both_plans_are_measured_beside_their_simulation(setting, tied, caplog):
    config = dataclasses.replace(CONFIG, tied_embeddings=tied)
    todo = hybrid.hybrid(setting, "tiny", config, "bf16", BY_HAND)
    assert list(todo) == ["hybrid tiny bf16"] and subjects.each(todo), caplog.text
    placed, split = setting.rows
    assert [row["part"] for row in setting.rows] == ["placed", "layer split"]
    assert split["dense_ratio"] == 1 and placed["baseline"] == hybrid.BASELINE and placed["run"] == split["run"]
    for row in setting.rows:
        assert tuple(row) == KEYS and (row["mode"], row["calls"]) == ("exact", 2 * hybrid.TURN)
        assert row["tokens_per_s"] > 0 and row["simulated"]["tokens_per_s"] > 0 and row["bytes"] > 0
        assert row["simulated"]["machine"]["name"] == MACHINE.name
        assert row["loading"]["planned_bytes"] <= row["loading"]["budget"]
        assert 0.8 < row["activation_sparsity"] < 0.95
    assert placed["activation_sparsity"] == split["activation_sparsity"]
    assert placed["loading"]["cold"]["layers"]["shared"] > 0 == split["loading"]["cold"]["layers"]["shared"]
    assert split["loading"]["cold"]["layers"]["slow"] > 0
    text = table(setting.rows)
    assert "decode placed tiny" in text and "decode layer split tiny" in text and "simulated" in text


def test_a_plan_with_nothing_on_the_gpu_is_said(setting, caplog, monkeypatch):
    monkeypatch.setattr(hybrid, "budget_of", lambda case: case.problem.fixed)
    assert not subjects.each(hybrid.hybrid(setting, "tiny", CONFIG, "bf16", BY_HAND))
    assert not setting.rows and "all on the CPU" in caplog.text


def test_without_the_extension_it_is_left_out_in_one_line(setting, caplog, monkeypatch):
    monkeypatch.setattr(hybrid.cpu, "available", lambda: False)
    assert hybrid.hybrid(setting, "tiny", CONFIG, "bf16") == {}
    (record,) = caplog.records
    assert "left out: the C++ extension is not built here" in record.message


def test_more_memory_than_the_budget_is_a_failure(setting, caplog, monkeypatch):
    hybrid.check_held("placed", (600, 400), 1000)
    with pytest.raises(MachineError, match=r"placed has reserved 6\.00 GB beside a context of 0\.50 GB, .* 6\.40 GB"):
        hybrid.check_held("placed", (6 * 10**9, 5 * 10**8), 64 * 10**8)

    class Greedy(hybrid.Decoding):
        def __init__(self, *given):
            super().__init__(*given)
            self.held = 1 << 50, 0

    monkeypatch.setattr(hybrid, "Decoding", Greedy)
    assert not subjects.each(hybrid.hybrid(setting, "tiny", CONFIG, "bf16", BY_HAND))
    assert len(setting.rows) == 2 and "more than the budget" in caplog.text, "rows are written first"


def test_half_of_the_bytes_is_the_budget():
    config = shape("prosparse-llama-2-7b")
    case = type("Case", (), {"config": config, "weights": "bf16"})
    assert hybrid.budget_of(case) == 6_738_149_376


@pytest.mark.parametrize("fmt", ["bf16", "int4"])
def test_halves_are_the_whole(small_probe, fmt):
    """Layers of each kind, and a second plan of the same model."""
    order = torch.randperm(CONFIG.neurons, generator=torch.Generator().manual_seed(1))
    cuts = Cut(192, 48, True, order), Cut(0, 0, False, None), Cut(192, 192, True, None)
    plans = [Division(CPU, CPU, cuts, True), Division(CPU, CPU, cuts[::-1], True)]
    made = halves.synthesize(CONFIG, fmt, settle(CONFIG, 0.88), [halves.Halves(CONFIG, fmt, plan) for plan in plans])
    expected, _ = synthetic_weights(CONFIG, fmt, 0.88)
    for model, shared in zip(made, (0, 2), strict=True):
        assert model.embed is model.lm_head and model.nbytes == expected.nbytes
        assert torch.equal(model.embed.codes, expected.embed.codes)
        for number, (own, whole) in enumerate(zip(model.layers, expected.layers, strict=True)):
            assert torch.equal(own.qkv.codes, whole.qkv.codes) and torch.equal(own.o.codes, whole.o.codes)
            assert (own.cold is not None) == (number == shared)
            for name in ("gate", "up", "down"):
                parts, rows = [getattr(own, name)], getattr(whole, name).codes
                if own.cold is not None:
                    parts.append(getattr(own.cold, name))
                    rows = rows[order]
                assert torch.equal(torch.cat([part.codes for part in parts]), rows)
