"""Damaged, incomplete and hostile weight files: each gets an error that names the file and what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny

from prosparse.errors import CheckpointError, MissingFileError, UnsupportedError
from prosparse.weights import Checkpoint
from prosparse.weights.header import read_header

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_names_shapes_and_values(tmp_path):
    folder = write_tiny(tmp_path, shards=3)
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    with Checkpoint(folder) as checkpoint:
        assert set(checkpoint.names()) == set(stored)
        for name, tensor in stored.items():
            assert name in checkpoint
            assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(checkpoint.read(name), tensor)
        with pytest.raises(CheckpointError, match="has no tensor lm_head.bias"):
            checkpoint.read("lm_head.bias")


def test_reads_what_the_library_writes(tmp_path):
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    tensors = {str(dtype): torch.ones(3, 5).to(dtype) for dtype in dtypes} | {"scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "file")
    header = read_header(tmp_path / "file")
    assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, too short"),
        (b"1234567", "7 bytes, too short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n <html><body>Sign in</body></html>", "web page"),
        (b"PK\x03\x04" + b"\0" * 60, "PyTorch file.*prosparse convert"),
        (b"GGUF" + b"\0" * 60, "GGUF"),
        (b"\xff" * 64, "no safetensors file: its header would have 18446744073709551615 bytes"),
        ((1000).to_bytes(8, "little") + b'{"a": 1}', "cut off inside its header"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc", "header is not UTF-8"),
        ((4).to_bytes(8, "little") + b"{{{{", "header: not valid JSON"),
        ((4).to_bytes(8, "little") + b"[1 ]", "header: expected a JSON object"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_file_that_is_no_safetensors(tmp_path, content, message):
    folder = write_tiny(tmp_path)
    (folder / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint(folder)
    assert str(folder / FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (
            b'{"a": ' + json.dumps(entry()).encode() + b', "a": ' + json.dumps(entry()).encode() + b"}",
            8,
            "'a' appears twice",
        ),
        (b'{"a":' * 100_000, 8, "nested too deeply"),
        ({"a": []}, 8, "a: expected dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32"}}, 8, "a: expected dtype, shape and data_offsets"),
        ({"a": entry(dtype="F4")}, 8, "a: dtype 'F4'.* is not known"),
        ({"a": entry(shape=(-2,))}, 8, "a: shape must be a list"),
        ({"a": entry(shape=(2.0,))}, 8, "a: shape must be a list"),
        ({"a": entry(shape=(2**62, 2**62))}, 8, "a: F32 of shape .* needs"),
        ({"a": entry(shape=(3,))}, 8, "a: F32 of shape .3. needs 12 bytes, data_offsets span 8"),
        ({"a": entry(offsets=(8, 0))}, 8, "a: data_offsets must be"),
        ({"a": entry(offsets=(-8, 0))}, 8, "a: data_offsets must be"),
        ({"a": entry(offsets=(0, 8, 8))}, 8, "a: data_offsets must be"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "b overlaps the tensor before it"),
        ({"a": entry(), "b": entry()}, 8, "b overlaps the tensor before it"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "b leaves a gap before it"),
        ({"a": entry()}, 7, "cut off: its tensors need 8 bytes, the file holds 7"),
        ({"a": entry()}, 9, "1 bytes follow the last tensor"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_header_that_contradicts_itself(tmp_path, header, data, message):
    path = write_raw(tmp_path / "file.safetensors", header, b"\0" * data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.999])
def test_truncated_download(tmp_path, kept):
    folder = write_tiny(tmp_path)
    size = (folder / FILE).stat().st_size
    os.truncate(folder / FILE, int(size * kept))
    with pytest.raises(CheckpointError, match="cut off.*download it again"):
        Checkpoint(folder)


PATHS = ["../outside.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "a\0.safetensors", "C:x.safetensors"]


@pytest.mark.parametrize("shard", [*PATHS, "config.json", "", 7, None])
def test_shard_name_that_leaves_the_folder(tmp_path, shard):
    folder = write_tiny(tmp_path / "model", shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model.norm.weight is in .*expected the name of a .safetensors file"):
        Checkpoint(folder)


def test_linked_shards_are_read_as_the_hub_cache_has_them(tmp_path):
    folder = write_tiny(tmp_path / "snapshot", shards=2)
    (tmp_path / "blobs").mkdir()
    for path in folder.glob("*.safetensors"):
        target = tmp_path / "blobs" / path.stem
        path.rename(target)
        path.symlink_to(target)
    assert "model.norm.weight" in Checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_index_without_a_map(tmp_path, weight_map):
    folder = write_tiny(tmp_path, shards=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map must be an object"):
        Checkpoint(folder)


def test_missing_shard(tmp_path):
    folder = write_tiny(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError, match="names 1 of 3 shards that are not there: model-00002-of-00003"):
        Checkpoint(folder)


def test_tensor_that_is_not_in_its_shard(tmp_path):
    folder = write_tiny(tmp_path, shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="says model.norm.weight is in model-00001.*does not hold it"):
        Checkpoint(folder)


def test_tensor_in_two_shards(tmp_path):
    folder = write_tiny(tmp_path, shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.zeros(2)}, second)
    with pytest.raises(CheckpointError, match="model.embed_tokens.weight is also in model-00001"):
        Checkpoint(folder)


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_are_not_opened(tmp_path, shards):
    folder = write_tiny(tmp_path / "m", weights="bin", shards=shards)
    with pytest.raises(
        CheckpointError, match=f"only pickled weights.*`prosparse convert {folder} -o {folder}-safetensors`"
    ):
        Checkpoint(folder)


def test_folder_without_weights(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no weights: expected model.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"it holds adapter_model.safetensors, which prosparse does not know"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        Checkpoint(tmp_path / "adapter_model.safetensors")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UnsupportedError, match="no safetensors, but model.gguf; give the path of the GGUF file"):
        Checkpoint(tmp_path)


def test_folder_in_place_of_a_file(tmp_path):
    folder = write_tiny(tmp_path)
    (folder / FILE).unlink()
    (folder / FILE).mkdir()
    with pytest.raises(CheckpointError, match="is a folder, expected a safetensors file"):
        Checkpoint(folder)


def test_file_that_cannot_be_read(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        Checkpoint(folder)


def test_file_replaced_after_it_was_opened(tmp_path):
    folder = write_tiny(tmp_path)
    checkpoint = Checkpoint(folder)
    save_file({"model.norm.weight": torch.zeros(3)}, folder / FILE)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        checkpoint.read("model.norm.weight")
    with pytest.raises(CheckpointError, match="lm_head.weight cannot be read"):
        checkpoint.read("lm_head.weight")
