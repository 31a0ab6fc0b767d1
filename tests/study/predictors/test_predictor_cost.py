"""What layers run is chosen by bytes, or by the seconds of a machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from prosparse.engine import Engine
from prosparse.errors import MissingFileError, UserError
from prosparse.hardware import PRESETS
from prosparse.kernels.guess import Guess
from prosparse.kernels.predict_select import pack_signs
from prosparse.kernels.weight import Weight, in_format
from prosparse.study.predictors import build, cost
from prosparse.study.predictors.cost import Bytes, Seconds, cost_on

GATE = Weight(torch.ones(200, 128, dtype=torch.bfloat16))  # 256 bytes a row
OFFSET = torch.zeros(200)  # 800 bytes
SLOW_ROWS = dataclasses.replace(PRESETS["8gb-pcie4"], cpu_gather=PRESETS["8gb-pcie4"].cpu_stream / 50)


def test_bytes_by_hand() -> None:
    guess = Guess(OFFSET, in_format(torch.ones(200, 32), "int8"), in_format(torch.ones(32, 128), "bf16"))
    assert Bytes().exact(GATE) == 200 * 256
    assert Bytes().predicted(guess, 0.25, GATE) == 800 + guess.second.nbytes + 32 * 256 + 50 * 256


def test_seconds_by_hand() -> None:
    seconds = Seconds(stream=1e9, gather=5e8, row_s=1e-7, call_s=1e-5, formats={"int4": 0.5})
    assert seconds.exact(GATE) == pytest.approx(1e-5 + 200 * 256 / 1e9)
    low_bit = Guess(OFFSET, in_format(GATE.values(), "int4"))
    scan = 2e-5 + 800 / 1e9 + 200 * low_bit.second.row_bytes / 5e8  # int4 reaches half of the speed
    assert seconds.predicted(low_bit, 0.1, GATE) == pytest.approx(scan + 20 * (1e-7 + 256 / 5e8))
    signs = Guess(OFFSET, pack_signs(GATE.values()))
    assert seconds.predicted(signs, 0.0, GATE) == pytest.approx(1e-5 + (800 + 200 * 16) / 1e9)


def test_a_machine_decides_what_pays(engine: Engine, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"kind": "sign_bits", "target_recall": 0.9, "text": text}
    by_bytes = build(engine, **given)
    assert any(by_bytes.layers) and by_bytes.about["chosen_by"] == "bytes"
    free_calls = dataclasses.replace(PRESETS["8gb-pcie4"], cpu_call_s=0.0, cpu_row_s=0.0)
    by_seconds = build(engine, **given, machine=free_calls)
    assert any(by_seconds.layers) and by_seconds.about["chosen_by"] == "seconds"
    assert not any(build(engine, **given, machine=SLOW_ROWS).layers)
    slow = {key: value for key, value in dataclasses.asdict(SLOW_ROWS).items() if key.startswith("cpu_")}
    monkeypatch.setattr(cost, "measure_cpu", lambda: slow)
    assert not any(build(engine, **given, machine="this").layers)


def test_machines_have_names_and_files(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(SLOW_ROWS.to_json())
    assert cost_on(str(tmp_path / "m.json")) == cost_on(SLOW_ROWS) != cost_on("8gb-pcie4")
    with pytest.raises((UserError, MissingFileError), match="neither a file nor one of this, 8gb-pcie3"):
        cost_on("9gb")
    with pytest.raises(UserError, match="machine must be 'this', a preset, a file or a Machine, got 7"):
        cost_on(7)
