"""The ffn subject: every activation sparsity from one set of weights, and no number for a wrong op."""

from __future__ import annotations

import pytest
import torch

from prosparse.bench import check, ffn, probe
from prosparse.bench.ffn import compare_ffn
from prosparse.bench.row import KEYS
from prosparse.errors import MachineError, UserError
from prosparse.kernels import cpu
from prosparse.kernels.glu_exact import glu_exact


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    monkeypatch.setattr(ffn, "BUFFER_BYTES", 2**18)


@pytest.mark.parametrize("weights", ["bf16", "fp32", "int8", "int4"])
def test_meets_every_sparsity(weights):
    wanted = (0.0, 0.5, 0.9, 1.0)
    rows = compare_ffn("tiny", wanted, weights, calls=60)
    assert [row["mode"] for row in rows] == ["dense", "exact"] * 4
    for row, sparsity in zip(rows[1::2], wanted, strict=True):
        assert tuple(row) == KEYS
        assert row["activation_sparsity"] == pytest.approx(sparsity, abs=0.05)
        assert row["synthetic"]["activation_sparsity"] == sparsity
    dense, exact = rows[-2:]
    assert exact["bytes"] / dense["bytes"] == pytest.approx((1 + 2 * (1 - exact["activation_sparsity"])) / 3, rel=1e-3)


def test_refuses_to_time_a_wrong_op(monkeypatch):
    monkeypatch.setitem(check.OPS, "exact", lambda *arguments: glu_exact(*arguments).mul_(1.001))
    monkeypatch.setattr(ffn, "interleave", lambda *_: pytest.fail("a red case was timed"))
    with pytest.raises(MachineError, match="glu_exact is wrong"):
        compare_ffn("tiny", (0.5,), calls=1)


def test_refuses_what_it_cannot_set_up():
    with pytest.raises(UserError, match="from 0 to 1"):
        compare_ffn("tiny", (1.1,))
    with pytest.raises(UserError, match="dReLU"):
        compare_ffn("bamboo-7b", (0.5,))


def test_the_probe_walks_the_whole_buffer(monkeypatch):
    monkeypatch.setattr(probe, "BUFFER_BYTES", 3 * probe.CALL_BYTES)
    seen = []
    monkeypatch.setattr(probe, "read", lambda part: seen.append((part.data_ptr(), part.nbytes)))
    instance = probe.Probe()
    for number in range(4):
        instance(number)
    first = seen[0][0]
    assert seen == [(first + i * probe.CALL_BYTES, probe.CALL_BYTES) for i in (0, 1, 2, 0)]


@pytest.mark.skipif(not cpu.available(), reason="the C++ extension is not built")
def test_the_probe_reads_every_byte():
    buffer = torch.zeros(2 * 2**20 // 8, dtype=torch.int64)
    rng = torch.Generator().manual_seed(0)
    for place in torch.randint(buffer.numel(), (50,), generator=rng).tolist() + [0, buffer.numel() - 1]:
        buffer[place] = 2
        assert torch.ops.prosparse.cpu_read(buffer) == 1
        buffer[place] = 0
    assert torch.ops.prosparse.cpu_read(buffer) == 0
    with pytest.raises(RuntimeError, match="multiple of"):
        torch.ops.prosparse.cpu_read(buffer[:-8])
