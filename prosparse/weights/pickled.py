"""Reading .bin weights for conversion: PyTorch's restricted unpickler, which makes tensors and runs no code."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, MissingFileError
from .checkpoint import PICKLED, listed, own_names, read_shard_names

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class PickledCheckpoint:
    """The tensors of a folder's .bin files by name; what `Checkpoint` is for safetensors.

    Args:
        folder: holds pytorch_model.bin, or pytorch_model.bin.index.json and the shards it names.
        prefix, beside: see `Checkpoint`.

    Raises:
        MissingFileError: a shard that the index names is not there.
        CheckpointError: no .bin weights, or a file that holds anything but dense tensors.
    """

    def __init__(self, folder: Path, prefix: str = "", beside: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._tensors: dict[str, tuple[Path, Tensor]] = {}
        for path in _find_pickled(folder):
            for name, tensor in _read_pickled(path).items():
                if name in self._tensors:
                    other = self._tensors[name][0].name
                    raise CheckpointError(f"{path}: {name} is also in {other}; a tensor must be in one shard only")
                self._tensors[name] = (path, tensor)
        self._stored_names = own_names(folder, self._tensors, prefix, beside)
        self._tensors = {name: self._tensors[stored] for name, stored in self._stored_names.items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name][1].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name][1].dtype

    def path(self, name: str) -> Path:
        return self._tensors[name][0]

    def stored_name(self, name: str) -> str:
        return self._stored_names[name]

    def read(self, name: str) -> Tensor:
        return self._tensors[name][1]


def _find_pickled(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        shards = list(read_shard_names(folder / INDEX, ".bin"))
        if missing := [name for name in shards if not (folder / name).exists()]:
            raise MissingFileError(f"{folder}: {INDEX} names shards that are not there: {listed(missing)}")
        return [folder / name for name in shards]
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(PICKLED))
    raise CheckpointError(
        f"{folder}: holds {listed(found) or 'no weights'}, expected {SINGLE}, or {INDEX} and its shards"
    )


def unpickle(path: Path) -> Any:
    """What a PyTorch file holds; nothing in it is run.

    Raises:
        CheckpointError: it cannot be read, or holds what would have to be run.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"  # files of PyTorch before 1.6 are not, and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as fault:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is no PyTorch file: {_reason(fault)}; "
            "prosparse never runs code from a model: get the weights as safetensors"
        ) from None
    except Exception as fault:  # a damaged pickle makes the unpickler stumble over anything: KeyError, IndexError, ...
        reason = (str(fault) or type(fault).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as PyTorch weights: {reason}") from None


def _reason(fault: Exception) -> str:
    """PyTorch's own words about what it met, without those that advise to run it."""
    found = re.search(r"WeightsUnpickler error: ([^\n]*)", str(fault))
    return found[1].split(". Please")[0].strip() if found else str(fault).splitlines()[0]


def _read_pickled(path: Path) -> dict[str, Tensor]:
    tensors = unpickle(path)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{path}: {name} is no dense tensor; only plain weights are converted")
    return tensors
