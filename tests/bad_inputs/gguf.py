"""Bad inputs: GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from bad_inputs.case import Case, Change
from gguf_writer import model_keys, model_tensors, stored, write_gguf, write_model

FILE = "model.gguf"
COMMAND = ("generate", f"MODEL/{FILE}", "--prompt", "ab", "--max-new-tokens", "2")
AS_STORED = (*COMMAND, "--weights", "fp32")


def _file(kind: str = "F32", powerinfer: bool = False, **changes: Any) -> Change:
    """The model as a GGUF file in its folder, with keys changed; None removes one."""

    def change(folder: Path) -> None:
        write_model(folder / FILE, folder, kind, powerinfer=powerinfer, **changes)

    return change


def _tensors(**changes: Any) -> Change:
    """The same with tensors changed; None removes one, ! in a name stands for a dot."""

    def change(folder: Path) -> None:
        tensors = {name: stored(tensor, "F32") for name, tensor in model_tensors(folder).items()}
        tensors |= {name.replace("!", "."): tensor for name, tensor in changes.items()}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        write_gguf(folder / FILE, model_keys(folder), kept)

    return change


def _bytes(at: int, data: bytes) -> Change:
    """Some bytes of the file replaced."""

    def change(folder: Path) -> None:
        raw = write_model(folder / FILE, folder).read_bytes()
        (folder / FILE).write_bytes(raw[:at] + data + raw[at + len(data) :])

    return change


def _cut(folder: Path) -> None:
    raw = write_model(folder / FILE, folder).read_bytes()
    (folder / FILE).write_bytes(raw[:-5000])


def _page(folder: Path) -> None:
    (folder / FILE).write_text("<!DOCTYPE html><html>404</html>")


def _only_gguf(folder: Path) -> None:
    write_model(folder / FILE, folder)
    (folder / "model.safetensors").unlink()


def _gpu_index(folder: Path) -> None:
    keys = {"general.architecture": "generic.gpu_index", "generic.gpu_index.block_count": 1}
    write_gguf(folder / FILE, keys, {"blk.0.gpu_idx": stored(torch.ones(4, dtype=torch.int32), "I32")}, b"PWRI")


NAN = struct.pack("<f", float("nan"))
GGUF = {
    "g1": [
        Case("a GGUF file that does not say its activation runs dense, and says so", _file(), AS_STORED, status=0),
        Case("a GGUF file with the activation given", _file(), (*AS_STORED, "--fatrelu-threshold", "0"),
             status=0),
        Case("a PowerInfer file runs exact", _file(powerinfer=True), (*AS_STORED, "--mode", "exact"), status=0),
        Case("mode exact and no activation given", _file(), (*COMMAND, "--mode", "exact")),
        Case("an activation that is no number", _file(), (*COMMAND, "--fatrelu-threshold", "nan")),
    ],
    "g2": [
        Case("a web page named .gguf", _page, COMMAND),
        Case("a version that is not known", _bytes(4, struct.pack("<I", 7)), COMMAND),
        Case("2^62 tensors", _bytes(8, struct.pack("<Q", 2**62)), COMMAND),
        Case("a GGUF download cut off", _cut, COMMAND),
    ],
    "g3": [
        Case("an architecture that is not read", _file(general_architecture="gemma2"), COMMAND),
        Case("a key missing", _file(llama_block_count=None), COMMAND),
        Case("a key of another type", _file(llama_embedding_length="64"), COMMAND),
        Case("more layers than tensors", _file(llama_block_count=2**31 - 1), COMMAND),
        Case("experts", _file(**{"llama.expert_count": 8}), COMMAND),
        Case("a rope scaling that GGUF files are not read with", _file(**{"llama.rope.scaling.type": "yarn"}), COMMAND),
        Case("one part of a file that was split", _file(**{"split.count": 2}), COMMAND),
        Case("PowerInfer's list of GPU neurons in place of a model", _gpu_index, COMMAND),
    ],
    "g4": [
        Case("a tensor missing from a GGUF file", _tensors(**{"blk!0!ffn_up!weight": None}), COMMAND),
        Case("a tensor of another shape in a GGUF file",
             _tensors(**{"output_norm!weight": stored(torch.ones(63), "F32")}), COMMAND),
        Case("a tensor that would change the rotary embedding",
             _tensors(**{"rope_freqs!weight": stored(torch.ones(8), "F32")}), COMMAND),
        Case("a type of tensor that is not read", _tensors(**{"output!weight": ((259, 64), 20, bytes(9324))}), COMMAND),
        Case("NaN in a GGUF file", _tensors(**{"output!weight": ((259, 64), 0, NAN + bytes(4 * 259 * 64 - 4))}),
             COMMAND),
    ],
    "g5": [
        Case("no tokenizer in a GGUF file", _file(tokenizer_ggml_model=None), COMMAND),
        Case("a tokenizer of a kind that is not read", _file(tokenizer_ggml_model="t5"), COMMAND),
        Case("a rule for words that is not known", _file(tokenizer_ggml_pre="viking"), COMMAND),
    ],
    "g6": [
        Case("a folder with nothing but a GGUF file", _only_gguf),
        Case("a GGUF file to be converted", _file(),
             ("convert", f"MODEL/{FILE}", "-o", "MODEL-x", "--weights", "int8")),
    ],
}  # fmt: skip
