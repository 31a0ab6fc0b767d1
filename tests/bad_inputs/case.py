"""What a bad input is: a working tiny model, one change to it, a command, and what the command says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_model import write_weights

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
GENERATE = ("generate", "MODEL", "--prompt", "ab", "--max-new-tokens", "2")
Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        title: what is wrong, for a reader of the table.
        change: done to the folder of a working model; None leaves it.
        command: arguments of the command line; MODEL stands for the folder.
        call: instead of a command, what is done with the engine of the folder in Python.
        status: exit status of the command; 0 where the input is no error.
        model: keywords of `write_tiny` that differ.
        environment: variables that are set.
        patch: {dotted name: value} put in place while the command runs, for what a test machine does not have.
        alone: run it in a process of its own, since it is about how one starts.
        closed_stdout: nobody reads what it writes.
        library: pattern of another library's words in the message; its versions differ, so the table leaves them out.
        shows: what must be written on stdout, for cases that are no error.
    """

    title: str
    change: Change | None = None
    command: Sequence[str] = GENERATE
    call: Callable[[Any], object] | None = None
    status: int = 2
    model: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    patch: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    closed_stdout: bool = False
    library: str = ""
    shows: str = ""


def config(**keys: Any) -> Change:
    """Change keys of config.json; None removes one."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text()) | keys
        (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return change


def content(name: str, data: bytes | str) -> Change:
    """Replace a file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def removed(*names: str) -> Change:
    """Remove files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def folder_instead(name: str) -> Change:
    """A folder in place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Edit the tensors of a one-file checkpoint."""

    def change(folder: Path) -> None:
        found = load_file(folder / FILE)
        edit(found)
        write_weights(folder, {name: tensor.contiguous() for name, tensor in found.items()})

    return change


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Edit the header of a one-file checkpoint, and leave its data."""

    def change(folder: Path) -> None:
        raw = (folder / FILE).read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        data = json.loads(raw[8:end])
        edit(data)
        text = json.dumps(data).encode()
        (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])

    return change


def raw_header(text: bytes, length: int | None = None) -> Change:
    """A file of nothing but a header, whose length may be a lie."""
    return content(FILE, (len(text) if length is None else length).to_bytes(8, "little") + text)


def resized(change_by: int) -> Change:
    """Cut bytes from the weights, or append zeros."""

    def change(folder: Path) -> None:
        os.truncate(folder / FILE, (folder / FILE).stat().st_size + change_by)

    return change


def in_index(tensor: str, shard: Any) -> Change:
    """Let the index say that a tensor is in some shard."""

    def change(folder: Path) -> None:
        data = json.loads((folder / INDEX).read_text())
        data["weight_map"][tensor] = shard
        (folder / INDEX).write_text(json.dumps(data))

    return change


def generate(*options: str, prompt: str = "ab") -> tuple[str, ...]:
    """A generate command with further options."""
    return ("generate", "MODEL", "--prompt", prompt, *options)
