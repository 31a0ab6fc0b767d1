"""GGUF files: what the reader takes from them, and what it says of those that are wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_writer import TYPES, model_keys, model_tensors, stored, write_gguf, write_model
from tiny_engine import make_model

from prosparse.errors import CheckpointError, ConfigError, MissingFileError, UnsupportedError
from prosparse.weights.gguf import GgufCheckpoint, read_config, read_gguf
from prosparse.weights.gguf.kinds import KINDS, Blocks

KEYS = {"general.architecture": "llama", "a.number": 7, "a.long": 2**40, "a.fraction": 0.5, "a.flag": True,
        "a.text": "käse", "some.texts": ["x", ""], "some.numbers": [1, -2], "some.fractions": [0.25]}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("gguf") / "model", layers=1)


@pytest.mark.parametrize(("magic", "variant"), [(b"GGUF", "GGUF"), (b"PWRI", "PowerInfer")])
@pytest.mark.parametrize("version", [2, 3])
def test_reads_keys_and_places(magic: bytes, variant: str, version: int, tmp_path: Path) -> None:
    tensors = {"a": stored(torch.ones(3, 5), "F16"), "b": stored(torch.arange(4, dtype=torch.int32), "I32")}
    for alignment in (8, 32, 1024):
        keys = KEYS | {"general.alignment": alignment}
        file = read_gguf(write_gguf(tmp_path / "x", keys, tensors, magic, version, alignment))
        assert (file.variant, file.metadata) == (variant, keys)
        assert {name: (t.shape, t.kind.name, t.nbytes) for name, t in file.tensors.items()} == {
            "a": ((3, 5), "F16", 30), "b": ((4,), "I32", 16)}  # fmt: skip
        assert all(tensor.start % alignment == 0 for tensor in file.tensors.values())


def test_a_file_whose_last_tensor_is_not_padded(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", KEYS, {"a": stored(torch.ones(3), "F32")})
    path.write_bytes(path.read_bytes()[:-20])
    assert read_gguf(path).tensors["a"].nbytes == 12


def test_values_of_blocks_are_those_of_the_public_package() -> None:
    gguf = pytest.importorskip("gguf", reason="the public quantiser is a development tool: pip install gguf")
    rng = torch.Generator().manual_seed(0)
    for kind in KINDS.values():
        if kind.unpack is None:
            continue
        raw = torch.randint(0, 256, (6, 3 * kind.nbytes), generator=rng, dtype=torch.uint8)
        at = 208 if kind.name == "Q6_K" else 0  # a scale that is a number
        raw.view(6, 3, kind.nbytes)[..., at : at + 2] = torch.rand(6, 3, 1, generator=rng).half().view(torch.uint8)
        found = Blocks(raw, kind)[slice(None)]
        expected = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind.name])
        assert torch.equal(found, torch.from_numpy(expected))


def test_parts_of_blocks() -> None:
    rng = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 60, (8, 4 * 34), generator=rng, dtype=torch.uint8)
    whole = Blocks(raw, KINDS[8])[slice(None)]
    order = torch.randperm(8, generator=rng)
    assert torch.equal(Blocks(raw, KINDS[8], order)[slice(2, 5)], whole[order][2:5])
    assert torch.equal(Blocks(raw, KINDS[8])[slice(None), slice(32, 96)], whole[:, 32:96])
    assert torch.equal(Blocks(raw, KINDS[8], transposed=True)[slice(None), slice(2, 5)], whole[2:5].t())
    assert torch.equal(Blocks(raw, KINDS[8], transposed=True)[slice(32, 64)], whole[:, 32:64].t())


def test_the_checkpoint_has_the_folders_tensors(folder: Path, tmp_path: Path) -> None:
    from prosparse.weights import Checkpoint

    expected = Checkpoint(folder)
    for powerinfer in (False, True):
        file = read_gguf(write_model(tmp_path / "x.gguf", folder, powerinfer=powerinfer))
        found = GgufCheckpoint(file, read_config(file))
        assert sorted(found.names()) == sorted(expected.names())
        for name in expected.names():
            assert (found.shape(name), found.dtype(name)) == (expected.shape(name), expected.dtype(name))
            assert torch.equal(found.read(name), expected.read(name)) and found.path(name) == file.path


def test_a_file_that_shrinks_after_its_header_was_read(folder: Path, tmp_path: Path) -> None:
    file = read_gguf(write_model(tmp_path / "x.gguf", folder))
    checkpoint = GgufCheckpoint(file, read_config(file))
    file.path.write_bytes(file.path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="x.gguf: changed while it was being read"):
        checkpoint.read("lm_head.weight")


def head(tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


NAME = struct.pack("<Q", 1) + b"a"
FILES: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", CheckpointError, "no GGUF file: it begins with b''"),
    "other magic": (b"GGML" + bytes(40), CheckpointError, "begins with b'GGML', expected b'GGUF' or b'PWRI'"),
    "version 1": (head(version=1), UnsupportedError, "version 1; little-endian versions 2 and 3 are read"),
    "big-endian": (head(version=3 << 24), UnsupportedError, "big-endian version 3"),
    "cut in the head": (head()[:13], CheckpointError, "cut off: the number of tensors needs 8 bytes"),
    "2^60 tensors": (head(tensors=2**60), CheckpointError, f"says it has {2**60} tensors, more than fit into its 24"),
    "2^60 keys": (head(keys=2**60), CheckpointError, f"says it has {2**60} keys"),
    "a key of 2^63 bytes": (head(keys=1) + struct.pack("<Q", 2**63) + bytes(40), CheckpointError,
                            "the name of a key would have 9223372036854775808 bytes, expected at most 512"),
    "a text beyond the end": (head(keys=1) + NAME + struct.pack("<IQ", 8, 10**7), CheckpointError,
                              "cut off: a needs 10000000 bytes"),
    "no UTF-8": (head(keys=1) + struct.pack("<Q", 1) + b"\xff" + bytes(20), CheckpointError, "is not UTF-8"),
    "a type of value": (head(keys=1) + NAME + struct.pack("<IQ", 13, 0), CheckpointError, "a is of type 13"),
    "a boolean of 2": (head(keys=1) + NAME + struct.pack("<IB", 7, 2) + bytes(8), CheckpointError, "neither 0 nor 1"),
    "an array of arrays": (head(keys=1) + NAME + struct.pack("<IIQ", 9, 9, 0), CheckpointError, "array of type 9"),
    "an array of 2^62": (head(keys=1) + NAME + struct.pack("<IIQ", 9, 0, 2**62), CheckpointError,
                         f"a would have {2**62} items, expected at most 4194304"),
    "a key twice": (head(keys=2) + 2 * (NAME + struct.pack("<II", 4, 1)), CheckpointError, "key 'a' appears twice"),
    "5 dimensions": (head(tensors=1) + NAME + struct.pack("<I", 5) + bytes(60), CheckpointError, "5 dimensions"),
    "a size of 2^62": (head(tensors=1) + NAME + struct.pack("<I2QIQ", 2, 2**62, 4, 0, 0), CheckpointError,
                       r"expected sizes from 1 to 2\^31 - 1"),
    "no rows": (head(tensors=1) + NAME + struct.pack("<I2QIQ", 2, 4, 0, 0, 0), CheckpointError, r"a is \[0, 4\]"),
    "a row of half a block": (head(tensors=1) + NAME + struct.pack("<I2QIQ", 2, 48, 1, 8, 0), CheckpointError,
                              "rows of a multiple of 32 as Q8_0"),
    "Q4_K": (head(tensors=1) + NAME + struct.pack("<I2QIQ", 2, 256, 1, 12, 0), UnsupportedError,
             "a is Q4_K; F32, F16, Q4_0, Q8_0, Q6_K, BF16 are read"),
    "type 99": (head(tensors=1) + NAME + struct.pack("<I2QIQ", 2, 4, 1, 99, 0), CheckpointError, "no type of GGUF"),
    "an odd offset": (head(tensors=1) + NAME + struct.pack("<IQIQ", 1, 4, 0, 4), CheckpointError, "a multiple of 32"),
    "data cut off": (head(tensors=1) + NAME + struct.pack("<IQIQ", 1, 400, 0, 0) + bytes(64), CheckpointError,
                     "cut off: a ends at byte 1664"),
    "bytes at the end": (head(tensors=1) + NAME + struct.pack("<IQIQ", 1, 8, 0, 0) + bytes(99), CheckpointError,
                         "bytes follow the last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("title", FILES)
def test_says_what_is_wrong_with_a_file(title: str, tmp_path: Path) -> None:
    content, error, message = FILES[title]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_gguf(tmp_path / "x.gguf")
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'}: ")


def test_says_where_the_file_is_not(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_gguf(tmp_path)


@pytest.mark.parametrize(("starts", "what"), [((0, 0), "overlaps"), ((0, 128), "leaves a gap")])
def test_tensors_must_be_adjacent(starts: tuple[int, int], what: str, tmp_path: Path) -> None:
    infos = b"".join(
        struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 4, 0, start)
        for name, start in zip((b"a", b"b"), starts, strict=True)
    )
    (tmp_path / "x").write_bytes(head(tensors=2) + infos + bytes(400))
    with pytest.raises(CheckpointError, match=f"b {what}"):
        read_gguf(tmp_path / "x")


KEY_FAULTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "architecture": ({"general.architecture": "gemma"}, UnsupportedError, "'gemma'.*llama and minicpm are read"),
    "no sizes": ({"llama.embedding_length": None}, ConfigError, "llama.embedding_length must be given, got no such"),
    "sizes per layer": ({"llama.feed_forward_length": [96]}, ConfigError, "feed_forward_length must be a whole number"),
    "kv heads": ({"llama.attention.head_count_kv": 3}, ConfigError, "a divisor of llama.attention.head_count"),
    "odd heads": ({"llama.attention.key_length": 15}, ConfigError, "even size"),
    "part of a head": ({"llama.rope.dimension_count": 8}, ConfigError, "rope.dimension_count must be 16, the size"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, UnsupportedError, "'yarn'.*supported are none and linear"),
    "experts": ({"llama.expert_count": 8}, UnsupportedError, "llama.expert_count is 8, which prosparse does not"),
    "parts": ({"split.count": 3}, UnsupportedError, "one of 3 parts"),
    "layers": ({"llama.block_count": 2**31 - 1}, CheckpointError, "block_count is 2147483647.*have 1 layers"),
    "another size": ({"llama.embedding_length": 128}, CheckpointError, r"token_embd.weight is \[259, 64\] F32, but"),
    "bos": ({"tokenizer.ggml.bos_token_id": 300}, ConfigError, r"below the rows of token_embd.weight \(259\)"),
    "alignment": ({"general.alignment": 24}, CheckpointError, "power of two from 8 to 65536, got 24"),
}  # fmt: skip


@pytest.mark.parametrize("title", KEY_FAULTS)
def test_says_which_key_is_wrong(title: str, folder: Path, tmp_path: Path) -> None:
    changes, error, message = KEY_FAULTS[title]
    path = write_model(tmp_path / "x.gguf", folder, **changes)
    with pytest.raises(error, match=message):
        file = read_gguf(path)
        GgufCheckpoint(file, read_config(file))


def test_says_which_tensor_is_wrong(folder: Path, tmp_path: Path) -> None:
    def attempt(**changes: Any) -> None:
        tensors = {name: stored(tensor, "F32") for name, tensor in model_tensors(folder).items()} | changes
        kept = {name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None}
        file = read_gguf(write_gguf(tmp_path / "x.gguf", model_keys(folder), kept))
        GgufCheckpoint(file, read_config(file))

    with pytest.raises(CheckpointError, match="1 of 12 tensors are missing: blk.0.ffn_up.weight"):
        attempt(**{"blk.0.ffn_up.weight": None})
    with pytest.raises(CheckpointError, match="token_embd.weight, so it is no whole model"):
        attempt(**{"token_embd.weight": None})
    with pytest.raises(UnsupportedError, match="does not compute in a llama model: rope_freqs.weight"):
        attempt(**{"rope_freqs.weight": stored(torch.ones(8), "F32")})
    with pytest.raises(CheckpointError, match=r"output_norm.weight is \[64\] I32"):
        attempt(**{"output_norm.weight": ((64,), TYPES["I32"], bytes(256))})


def test_minicpm_without_its_constants(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="minicpm", dim_model_base=256, layers=4)
    path = write_model(tmp_path / "x.gguf", folder, arch="minicpm", minicpm_embedding_scale=None,
                       minicpm_residual_scale=None, minicpm_logit_scale=None)  # fmt: skip
    config = read_config(read_gguf(path), 0.03)
    assert (config.embed_scale, config.residual_scale, config.logit_scale) == (12.0, 0.7, 4.0)
    assert "minicpm.logit_scale; the constants of MiniCPM are used" in config.notes[0]
