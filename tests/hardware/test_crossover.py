"""From which activation sparsity on exact is faster: by times that are made up, so that no clock decides."""

from __future__ import annotations

import itertools
import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prosparse.errors import UserError
from prosparse.hardware import KeptTimes, Times, cached
from prosparse.hardware.crossover import LEAST_CALLS, SPARSITIES, TIE, measure_times
from prosparse.kernels import cpu
from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import DOWN_ROWS, UP_ROWS, new_tally
from prosparse.kernels.weight import in_format
from prosparse.sparsity import ExactFFN, PlainExactFFN, dense_twin

TIMES = Times((0.0, 0.1, 0.2), (1.0, 1.0, 1.0), (1.1, 1.0, 0.9))


@pytest.mark.parametrize(
    ("ratios", "crossover"),
    [
        ((1.1, 0.9, 0.8), 0.05),  # half way, where the lines meet
        ((1.1, 1.0, 0.9), 0.1),
        ((1.3, 1.1, 0.9), 0.15),
        ((1.0 + TIE, 0.9, 0.8), 0.0),  # no difference
        ((0.9, 0.8, 0.7), 0.0),
        ((1.3, 1.2, 1.1), 0.2),
        ((1.1, 0.9, 1.4), 0.05),  # more zeros cannot be worse: a moment of noise
        ((0.9, 1.4, 0.8), 0.0),
        ((1.1, 1.005, 0.9), 0.1),
    ],
)
def test_where_the_times_cross(ratios: tuple[float, ...], crossover: float) -> None:
    dense_s = (2.0, 3.0, 4.0)
    exact_s = tuple(dense * ratio for dense, ratio in zip(dense_s, ratios, strict=True))
    assert Times((0.0, 0.1, 0.2), dense_s, exact_s).crossover == pytest.approx(crossover)


@pytest.mark.parametrize(
    "columns",
    [
        ((), (), ()),
        ((0.0,), (1.0, 1.0), (1.0,)),
        ((0.1, 0.0), (1.0, 1.0), (1.0, 1.0)),
        ((0.0, 0.0), (1.0, 1.0), (1.0, 1.0)),
        ((0.0,), (0.0,), (1.0,)),
        ((0.0,), (1.0,), (float("nan"),)),
        ((0.0,), (1.0,), ("1",)),
        ((True,), (1.0,), (1.0,)),
    ],
)
def test_what_are_no_times(columns: tuple) -> None:
    with pytest.raises(UserError, match="^times: need "):
        Times(*columns)


class Clock:
    """Time passes only where an op says so."""

    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> float:
        return self.s


class FakeLayer:
    """One second dense; exact 1.2 s at no zeros, and in proportion less with them."""

    def __init__(self, clock: Clock, number: int, calls: list[tuple[int, bool]]) -> None:
        self.clock, self.number, self.calls = clock, number, calls
        self.gate = torch.linspace(-3, 2, 1000).roll(100 * number) + number

    def gate_of(self, x: Tensor) -> Tensor:
        return self.gate + torch.zeros(len(x), 1)

    def at_threshold(self, x: Tensor, threshold: float, dense: bool, tally: Tensor) -> Tensor:
        self.calls.append((self.number, dense))
        zeros = float((self.gate < threshold).float().mean())
        self.clock.s += 1.0 if dense else 1.2 - zeros
        return x


def test_a_table_is_measured_in_turns_over_cold_layers() -> None:
    clock, calls = Clock(), []
    layers = [FakeLayer(clock, number, calls) for number in range(6)]
    times = measure_times(layers, 8, 3, now=clock.now)
    assert times.sparsities == SPARSITIES and times.crossover == pytest.approx(0.2, abs=0.01)
    assert times.dense_s == pytest.approx([1.0] * len(SPARSITIES))
    assert times.exact_s == pytest.approx([1.2 - zeros for zeros in SPARSITIES], abs=2e-3)
    assert len(calls) == 2 * LEAST_CALLS * len(SPARSITIES)
    assert [dense for _, dense in calls] == [True, False] * (len(calls) // 2)
    assert all(abs(a - b) > 1 for (a, _), (b, _) in itertools.pairwise(calls[: 2 * LEAST_CALLS]))


@pytest.mark.parametrize("pace", [0.0, -1.0])
def test_a_clock_that_does_not_go_forward_says_nothing(pace: float) -> None:
    ticks = itertools.count()
    times = measure_times([FakeLayer(Clock(), 0, [])], 8, 1, now=lambda: pace * next(ticks))
    assert times.dense_s == times.exact_s and times.crossover == 0


HIDDEN, NEURONS = 96, 200


def block(kind: str, weights: str) -> ExactFFN | PlainExactFFN:
    rng = torch.Generator().manual_seed(1)
    gate, up, down = (in_format(torch.randn(NEURONS, HIDDEN, generator=rng), weights) for _ in range(3))
    norm, bias = torch.ones(HIDDEN), torch.randn(NEURONS, generator=rng)
    if kind == "plain":
        return PlainExactFFN(norm, None, 1e-5, gate, bias, down, None, Activation("relu"))
    return ExactFFN(norm, 1e-5, gate, up, down, Activation("relu", on_up=kind == "drelu"), 1.0)


@pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference makes no bitwise promise")
@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("kind", ["gated", "drelu", "plain"])
@pytest.mark.parametrize("rows", [1, 4])
def test_any_sparsity_is_met_and_both_ops_agree(kind: str, weights: str, rows: int) -> None:
    ffn = block(kind, weights)
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(2))
    opens = ffn.gate_of(x).amax(0).sort().values
    for share in (0.0, 0.25, 0.5, 0.95):
        exact_tally, dense_tally = new_tally("cpu"), new_tally("cpu")
        threshold = float(opens[round(share * NEURONS)])
        exact = ffn.at_threshold(x, threshold, False, exact_tally)
        assert torch.equal(exact, ffn.at_threshold(x, threshold, True, dense_tally))
        # Where the gate meets x in another order of sums, one neuron may fall on the other side.
        assert int(exact_tally[UP_ROWS]) == pytest.approx((1 - share) * NEURONS, abs=1)
        assert dense_tally[[UP_ROWS, DOWN_ROWS]].tolist() == [NEURONS, NEURONS]


@pytest.mark.parametrize("kind", ["gated", "drelu", "plain"])
def test_a_twin_has_the_same_weights(kind: str) -> None:
    ffn = block(kind, "fp32")
    twin = dense_twin(ffn)
    assert twin is not None and twin.parts() == ffn.parts()
    assert dense_twin(twin) is None and dense_twin(object()) is None


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes one for a model of some format; what it measured is in `.rows`."""
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path / "cache"))
    rows: list[int] = []

    def measure(layers, hidden: int, asked: int) -> Times:
        rows.append(asked)
        return TIMES

    def make(fmt: str = "bf16") -> KeptTimes:
        return KeptTimes([], 64, {"format": fmt}, measure)

    make.rows = rows
    return make


def test_a_table_is_measured_once_and_read_by_others(kept) -> None:
    first = kept()
    assert first.known(1) is None and kept.rows == []
    assert first.measured(1) == first.measured(1) == first.known(1) == TIMES
    second = kept()
    assert second.known(1) == second.measured(1) == TIMES
    assert second.known(2) is None and kept("int8").known(1) is None
    assert kept.rows == [1]
    second.measured(2)
    kept("int8").measured(1)
    assert kept.rows == [1, 2, 1]


@pytest.mark.parametrize("what", ["threads", "instructions", "processor", "triton", "version"])
def test_other_circumstances_have_other_times(kept, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    kept().measured(1)
    changes = {
        "threads": (torch, "get_num_threads", lambda: 77),
        "instructions": (cached.cpu, "isa", lambda: "another"),
        "processor": (cached.this, "processor_name", lambda: "another"),
        "triton": (cached.triton, "version", lambda: "another"),
        "version": (cached, "__version__", "99"),
    }
    monkeypatch.setattr(*changes[what])
    assert kept().known(1) is None
    assert kept().measured(1) == TIMES and kept.rows == [1, 1]


def test_a_machine_without_triton_has_times_too(kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", not_there)
    assert cached.triton.version() is None
    assert kept().known(1) is None and kept().measured(1) == TIMES == kept().known(1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema_version": 1}',
        json.dumps({"schema_version": 2, "sparsities": [0.0], "dense_s": [1.0], "exact_s": [1.0]}),
        json.dumps({"schema_version": 1, "sparsities": [0.0], "dense_s": [1.0], "exact_s": [-1.0]}),
        json.dumps({"schema_version": 1, "sparsities": [0.0], "dense_s": 3, "exact_s": [1.0]}),
        json.dumps({"schema_version": 1, "sparsities": [0.0], "dense_s": [1.0], "exact_s": [10**400]}),
    ],
)
def test_a_damaged_table_is_measured_again(kept, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    kept().measured(1)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(text)
    again = kept()
    assert again.known(1) is None and again.known(1) is None
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(file) in record.message and "measured again" in record.message
    assert again.measured(1) == TIMES and kept.rows == [1, 1]
    assert kept().known(1) == TIMES


def test_a_cache_that_cannot_be_written_is_one_line(
    kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path / "file"))
    times = kept()
    assert times.measured(1) == times.measured(1) == TIMES and kept.rows == [1]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "PROSPARSE_CACHE names another folder" in record.message
