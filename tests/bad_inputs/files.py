"""Bad inputs: config.json, and the files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bad_inputs.case import (
    FILE,
    SHARDS,
    Case,
    config,
    content,
    folder_instead,
    generate,
    header,
    in_index,
    raw_header,
    removed,
    resized,
    tensors,
)  # fmt: skip
from safetensors.torch import load_file, save_file

GATE, NORM = "model.layers.0.mlp.gate_proj.weight", "model.norm.weight"


def _deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)


def _set(name: str, value: float) -> Any:
    def edit(found: dict[str, torch.Tensor]) -> None:
        found[name].view(-1)[:3] = value

    return tensors(edit)


def _entry(name: str, **keys: Any) -> Any:
    return header(lambda data: data[name].update(keys))


def _twice(folder: Path) -> None:
    second = folder / SHARDS[1]
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.zeros(2)}, second)


def _duplicate_key(folder: Path) -> None:
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)


def _linked(folder: Path) -> None:
    """As the cache of the Hugging Face Hub has it."""
    (folder / FILE).rename(folder / "blob")
    (folder / FILE).symlink_to(folder / "blob")


def _refuse(path: Path, *arguments: Any, **options: Any) -> Any:
    """Tests may run as root, who may read everything."""
    if path.name == FILE:
        raise PermissionError(13, "Permission denied")
    return open(path, *arguments, **options)


def _cut_while_loading(*_: object, **__: object) -> None:
    from safetensors import SafetensorError

    raise SafetensorError("incomplete metadata, file not fully covered")


def _one_deeper(folder: Path) -> None:
    files = list(folder.iterdir())
    (folder / "original").mkdir()
    for file in files:
        file.rename(folder / "original" / file.name)


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


CONFIG = {
    "1": [Case("config.json cut off", content("config.json", '{"hidden_size": 64'))],
    "2": [Case("config.json holds a list", content("config.json", "[1, 2]"))],
    "3": [
        Case("no config.json", removed("config.json")),
        Case("config.json is a folder", folder_instead("config.json")),
        Case("a file in place of the model's folder", command=("generate", "MODEL/config.json", "--prompt", "ab")),
        Case("the folder above the model's", _one_deeper),
        Case("an adapter in place of a model", _adapter),
        Case("no such folder", command=("generate", "MODEL/nowhere", "--prompt", "ab")),
    ],
    "4": [
        Case("a model_type that is not known", config(model_type="gpt9")),
        Case("a MiniCPM-V that is not known", config(model_type="minicpmv", version=4.5)),
    ],
    "5": [Case("a hidden_act that is not known", config(hidden_act="nope"))],
    "6": [Case("fatrelu without its threshold", config(hidden_act="fatrelu"))],
    "7": [
        Case("a SiLU model runs dense, and says so", config(hidden_act="silu"), status=0),
        Case("a SiLU model in mode exact", config(hidden_act="silu"), generate("--mode", "exact")),
    ],
    "8": [Case("a number in words", config(num_hidden_layers="two"))],
    "9": [Case("a negative size", config(hidden_size=-64))],
    "10": [Case("no heads", config(num_attention_heads=0))],
    "11": [Case("heads that do not divide hidden_size", config(num_attention_heads=3, head_dim=None))],
    "12": [Case("key-value heads that do not divide the heads", config(num_key_value_heads=3))],
    "13": [Case("more layers than the weights have", config(num_hidden_layers=3))],
    "14": [Case("a vocabulary larger than the embedding", config(vocab_size=300))],
    "15": [
        Case("rope_theta 0", config(rope_theta=0)),
        Case("rms_norm_eps NaN", config(rms_norm_eps=float("nan"))),
    ],
    "16": [Case("a rope_scaling that is not known", config(rope_scaling={"rope_type": "spiral", "factor": 2.0}))],
    "17": [
        Case(
            "keys for remote code are ignored",
            config(auto_map={"AutoModelForCausalLM": "evil.Model"}),
            status=0,
        )
    ],
    "18": [
        Case("2^40 layers", config(num_hidden_layers=2**40)),
        Case("as many layers as the key allows", config(num_hidden_layers=2**31 - 1)),
    ],
    "19": [Case("JSON nested 100 000 deep", _deep)],
}

WEIGHTS = {
    "20": [
        Case("an empty file", content(FILE, b"")),
        Case("a file of 5 bytes", content(FILE, b"12345")),
    ],
    "21": [
        Case("a header of 2^63 bytes", raw_header(b"{}", 2**63)),
        Case("a header longer than the file", raw_header(b"{}", 1000)),
    ],
    "22": [
        Case("a header that is not UTF-8", raw_header(b"{\xff\xfe\xfd}")),
        Case("a header that is not JSON", raw_header(b"{{{{")),
    ],
    "23": [
        Case("a download cut off", resized(-1000)),
        Case("bytes after the last tensor", resized(4)),
    ],
    "24": [Case("tensors that overlap", _entry(NORM, data_offsets=[0, 128]))],
    "25": [
        Case("a shape beyond 64 bits", _entry(GATE, shape=[2**62, 2**62])),
        Case("a negative size of a tensor", _entry(GATE, shape=[-96, 64])),
        Case("a shape that does not fill its bytes", _entry(GATE, shape=[95, 64])),
    ],
    "26": [Case("a dtype that is not known", _entry(GATE, dtype="F4"))],
    "27": [Case("a tensor named twice in one file", _duplicate_key)],
    "28": [
        Case("NaN among the weights", _set(GATE, float("nan"))),
        Case("infinity among the weights", _set(NORM, float("inf"))),
        Case("weights beyond fp16", _set(GATE, 1e6), generate("--weights", "fp16")),
    ],
    "29": [Case("a tensor missing", tensors(lambda found: found.pop(GATE)))],
    "30": [Case("a tensor that the model does not have", tensors(lambda found: found.update(extra=torch.zeros(3))))],
    "31": [Case("a tensor of another shape", tensors(lambda found: found.update({NORM: torch.ones(63)})))],
    "32": [
        Case("whole numbers for weights", tensors(lambda f: f.update({GATE: f[GATE].to(torch.int8)}))),
        Case("fp8 weights without scales", tensors(lambda f: f.update({GATE: f[GATE].to(torch.float8_e4m3fn)}))),
    ],
    "33": [Case("a shard missing", removed(SHARDS[1]), model={"shards": 2})],
    "34": [Case("a shard outside the folder", in_index(NORM, "../outside.safetensors"), model={"shards": 2})],
    "35": [
        Case("a shard by its absolute path", in_index(NORM, "/etc/shard.safetensors"), model={"shards": 2}),
        Case("a NUL in a shard's name", in_index(NORM, "a\0.safetensors"), model={"shards": 2}),
        Case("a linked file is followed", _linked, status=0),
    ],
    "36": [Case("a tensor that its shard does not hold", in_index(NORM, SHARDS[0]), model={"shards": 2})],
    "37": [Case("a tensor in two shards", _twice, model={"shards": 2})],
    "38": [Case("a folder in place of the weights", folder_instead(FILE))],
    "39": [Case("weights that may not be read", patch={"pathlib.Path.open": _refuse})],
    "40": [Case("a Git LFS pointer", content(FILE, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))],
    "41": [Case("only .bin weights", model={"weights": "bin"})],
    "42": [Case("a web page saved as weights", content(FILE, "<!DOCTYPE html><html>404</html>"))],
    "43": [
        Case(
            "weights replaced between the check and the load",
            patch={"prosparse.weights.checkpoint.safe_open": _cut_while_loading},
        )
    ],
    "44": [
        Case("tied embeddings without an lm_head", model={"tied": True}, status=0),
        Case("tied in the config, another lm_head in the weights: that one is used", status=0,
             model={"tie_word_embeddings": True}),
        Case("not tied in the config, no lm_head in the weights", model={"tied": True, "tie_word_embeddings": False}),
    ],
}  # fmt: skip
