"""Conversion writes the same model, whole or not at all, and runs no code."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import tiny_tensors, write_tiny, write_weights

from prosparse.config import ModelConfig
from prosparse.errors import CheckpointError, MachineError, UserError
from prosparse.weights import Checkpoint, convert, load_weights

MODULE = importlib.import_module("prosparse.weights.convert")  # the package's name for it is the function
SIZES = dict(hidden=64, neurons=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=128)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    with Checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).clone() for name in checkpoint.names()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 3])
def test_same_tensors_in_safetensors(tmp_path, weights, shards):
    source = write_tiny(tmp_path / "source", weights=weights, shards=shards, dtype=torch.float16)
    (source / "tokenizer.json").write_text("{}")
    (source / "modeling.py").write_text("raise SystemExit")
    result = convert(source, tmp_path / "made" / "result")
    assert same(read_all(result), tiny_tensors(tied=False, dtype=torch.float16, seed=0, **SIZES))
    assert {path.name for path in result.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (result / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert load_file(result / "model.safetensors").keys() == read_all(result).keys()  # the library reads it too
    assert os.listdir(tmp_path / "made") == ["result"]


def test_shards_and_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "SHARD_BYTES", 40_000)
    seen: list[tuple[int, int]] = []
    source = write_tiny(tmp_path / "source", shards=2)
    result = convert(source, tmp_path / "result", progress=lambda done, total: seen.append((done, total)))
    files = sorted(result.glob("*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 42_000 for path in files)
    assert same(read_all(result), read_all(source))
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in read_all(source).values())


@pytest.mark.parametrize("weights", ["fp32", "fp16", "bf16"])
def test_format_changes_tensors_and_config(tmp_path, weights):
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[weights]
    source = write_tiny(tmp_path / "source", weights="bin", dtype=torch.float32)
    result = convert(source, tmp_path / "result", weights)
    original = tiny_tensors(tied=False, dtype=torch.float32, seed=0, **SIZES)
    assert same(read_all(result), {name: tensor.to(dtype) for name, tensor in original.items()})
    assert json.loads((result / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    load_weights(Checkpoint(result), ModelConfig.from_hf(result))


def test_tied_second_name_and_rotary_tables_are_left_out(tmp_path):
    source = write_tiny(tmp_path / "source", weights="bin", tied=True)
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    embed = tensors["model.embed_tokens.weight"]
    extra = {"lm_head.weight": embed, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    write_weights(source, tensors | extra, weights="bin")
    assert same(read_all(convert(source, tmp_path / "result")), tensors)


def test_file_of_an_old_pytorch_is_read(tmp_path):
    source = write_tiny(tmp_path / "source", weights="bin")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(read_all(convert(source, tmp_path / "result")), tensors)


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    source = write_tiny(tmp_path / "source", weights="bin")
    torch.save({"a": Payload()}, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds more than tensors.*never runs code"):
        convert(source, tmp_path / "result")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "expected a dictionary of tensors, got list"),
        ({"a": 3}, "a is no dense tensor"),
        ({"a": torch.eye(2).to_sparse()}, "a is no dense tensor"),
    ],
    ids=str,
)
def test_pickle_that_is_no_state_dict(tmp_path, content, message):
    source = write_tiny(tmp_path / "source", weights="bin")
    torch.save(content, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "result")


@pytest.mark.parametrize("content", [b"", b"junk" * 10, b"PK\x03\x04" + b"x" * 40])
def test_damaged_bin_file(tmp_path, content):
    source = write_tiny(tmp_path / "source", weights="bin")
    (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="pytorch_model.bin: "):
        convert(source, tmp_path / "result")


def test_source_that_is_incomplete(tmp_path):
    source = write_tiny(tmp_path / "source", weights="bin", shards=2)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match="shards that are not there: pytorch_model-00002"):
        convert(source, tmp_path / "result")
    (source / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(CheckpointError, match="holds pytorch_model-00001-of-00002.bin, expected pytorch_model.bin"):
        convert(source, tmp_path / "result")


def test_model_that_does_not_run_is_refused_before_it_is_written(tmp_path):
    source = write_tiny(tmp_path / "source", weights="bin", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="num_hidden_layers 3"):
        convert(source, tmp_path / "result")
    assert os.listdir(tmp_path) == ["source"]


def test_overflow_leaves_nothing_behind(tmp_path):
    source = write_tiny(tmp_path / "source")
    tensors = read_all(source)
    tensors["lm_head.weight"][0, 0] = 1e5
    write_weights(source, tensors)
    with pytest.raises(CheckpointError, match="lm_head.weight has weights beyond the range of fp16"):
        convert(source, tmp_path / "result", "fp16")
    assert os.listdir(tmp_path) == ["source"]


def test_existing_destination(tmp_path):
    source = write_tiny(tmp_path / "source")
    other = write_tiny(tmp_path / "result", seed=1)
    with pytest.raises(UserError, match="result exists; choose another destination, or --overwrite"):
        convert(source, other)
    assert not same(read_all(other), read_all(source))
    assert same(read_all(convert(source, other, overwrite=True)), read_all(source))
    assert sorted(os.listdir(tmp_path)) == ["result", "source"]


def test_folder_that_is_no_model_is_not_replaced(tmp_path):
    source, project = write_tiny(tmp_path / "source"), tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no model folder.*not replaced"):
        convert(source, project, overwrite=True)
    assert (project / "config.json").read_text() == "{}"


def test_model_is_put_back_where_it_cannot_be_replaced(tmp_path, monkeypatch):
    source, other = write_tiny(tmp_path / "source"), write_tiny(tmp_path / "result", seed=1)
    before, replace = read_all(other), os.replace

    def refuse(start, end):
        if Path(end) == other and "old" not in str(start):
            raise OSError(18, "Invalid cross-device link")
        replace(start, end)

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(MachineError, match="cannot be written: Invalid cross-device link"):
        convert(source, other, overwrite=True)
    assert same(read_all(other), before)
    assert sorted(os.listdir(tmp_path)) == ["result", "source"]


@pytest.mark.parametrize("destination", ["source", "source/inside", "."])
def test_destination_in_the_source(tmp_path, destination):
    source = write_tiny(tmp_path / "source")
    with pytest.raises(UserError, match="must not lie in each other"):
        convert(source, tmp_path / destination, overwrite=True)


def test_unknown_format(tmp_path):
    source = write_tiny(tmp_path / "source")
    with pytest.raises(UserError, match="weights is 'int3'; supported are auto, fp32, fp16, bf16, int8, int4"):
        convert(source, tmp_path / "result", "int3")
    with pytest.raises(UserError, match="lm_head is 'q8'; supported are auto, "):
        convert(source, tmp_path / "result", lm_head="q8")
    assert os.listdir(tmp_path) == ["source"]


def test_full_disk(tmp_path, monkeypatch):
    source = write_tiny(tmp_path / "source")
    monkeypatch.setattr(MODULE.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(MachineError, match=r"needs 0.2 MB, its disk has 0.0 MB free; choose another"):
        convert(source, tmp_path / "result")
    monkeypatch.undo()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match="the disk is full"):
        convert(source, tmp_path / "result")
    assert os.listdir(tmp_path) == ["source"]


def test_interrupt_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(write_tiny(tmp_path / "source"), tmp_path / "result", progress=interrupt)
    assert os.listdir(tmp_path) == ["source"]
