"""Machine descriptions: what a file may say, what presets say, and how sizes are written."""

from __future__ import annotations

import dataclasses
import json

import pytest

from prosparse.errors import MissingFileError, UserError
from prosparse.hardware import PRESETS, Machine, named_machine, parse_size, show_size

MACHINE = dataclasses.replace(PRESETS["8gb-pcie4"], cpu_formats={"int4": 0.7}, name="mine")


def written(tmp_path, **changed):
    path = tmp_path / "m.json"
    data = json.loads(MACHINE.to_json()) | changed
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "left out"}))
    return str(path)


def test_a_file_describes_a_machine(tmp_path):
    assert named_machine(written(tmp_path)) == MACHINE
    assert named_machine(written(tmp_path, cpu_formats="left out", source="left out")).cpu_share("int4") == 1.0
    assert MACHINE.cpu_share("int4") == 0.7 and MACHINE.cpu_share("bf16") == MACHINE.gpu_share("int4") == 1.0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"gpu_stream": "fast"}, "m.json: machine: gpu_stream must be a finite number above 0, got 'fast'"),
        ({"gpu_stream": 0}, "gpu_stream must be a finite number above 0, got 0"),
        ({"sync_s": -1e-6}, "sync_s must be a finite number"),
        ({"to_gpu": float("nan")}, "to_gpu must be a finite number"),
        ({"gpu_bytes": 7.5}, "gpu_bytes must be a number of bytes, got 7.5"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"cpu_formats": {"int5": 1.0}}, "cpu_formats must be of fp32"),
        ({"cpu_formats": {"int4": -1}}, "cpu_formats int4 must be a share above 0, got -1"),
        ({"gpu_formats": [1]}, "gpu_formats must be shares by weight format"),
        ({"gpu_stream": "left out", "sync_s": "left out"}, "m.json: lacks gpu_stream, sync_s; a description has name"),
        ({"speed": 1}, "m.json: has unknown keys: speed"),
        ({"schema_version": 2}, "m.json: schema_version is 2, expected 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changed, says):
    with pytest.raises(UserError) as caught:
        named_machine(written(tmp_path, **changed))
    assert says in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="'9gb' is neither a file nor one of 8gb-pcie3, 8gb-pcie4"):
        named_machine("9gb")
    with pytest.raises(MissingFileError):
        Machine.load(tmp_path / "none.json")
    (tmp_path / "m.json").write_text("{]")
    with pytest.raises(UserError, match="not valid JSON at line 1"):
        named_machine(str(tmp_path / "m.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_plausible(name):
    machine = PRESETS[name]
    assert machine.name == name and Machine.from_json(machine.to_json(), name) == machine
    assert machine.gpu_bytes == pytest.approx((int(name.split("gb")[0]) - 0.8) * 2**30)
    assert machine.gpu_gather < machine.gpu_stream and machine.cpu_gather < machine.cpu_stream
    assert machine.to_gpu < machine.cpu_stream < machine.gpu_stream
    assert "data sheets" in machine.source


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GiB", 2**33), ("8 gib", 2**33), ("8GB", 8 * 10**9), ("7.2GiB", int(7.2 * 2**30)), ("512MiB", 2**29),
     (".5KB", 500), ("4096", 4096), ("1B", 1), (2**33, 2**33)],
)  # fmt: skip
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "8 G", "8GiBs", "-8GiB", "eight", "0GiB", "0.1B", "9EiB", "1e9", "nan", True]
)
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="--budget: .* (is no size; write for example 8GiB|must be from 1 byte)"):
        parse_size(text, "--budget")


def test_sizes_are_shown():
    assert (show_size(2**33), show_size(3 * 2**20)) == ("8.00 GiB", "3.0 MiB")
