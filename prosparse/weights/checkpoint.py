"""A folder of safetensors files: one model.safetensors, or shards with model.safetensors.index.json.

Opening reads headers only. Tensors are views of the mapped files, so reading them costs page cache, not memory.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config.fields import read_json_object, show
from ..errors import CheckpointError, MissingFileError, UnsupportedError
from .header import TensorInfo, read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth")


class Checkpoint:
    """The tensors of a model folder by name. Leaving a `with` statement unmaps its files; reading maps them again.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the shards it names.
        prefix: tensors whose names begin with it are known by the rest of their names.
        beside: tensors whose names begin with one of these are left out.

    Raises:
        MissingFileError: no such folder, or a shard that the index names is not there.
        CheckpointError: no weights, only pickled weights, or a file that is damaged or contradicts the index.
        UnsupportedError: only GGUF weights.
    """

    def __init__(self, folder: str | Path, prefix: str = "", beside: tuple[str, ...] = ()) -> None:
        self.folder = Path(folder)
        self._files: dict[Path, Any] = {}
        self._tensors: dict[str, tuple[Path, TensorInfo]] = {}
        expected = _find_weights(self.folder)
        for path in expected:
            for name, info in read_header(path).items():
                if name in self._tensors:
                    other = self._tensors[name][0].name
                    raise CheckpointError(f"{path}: {name} is also in {other}; a tensor must be in one shard only")
                self._tensors[name] = (path, info)
        for path, names in expected.items():
            for name in names:
                if name not in self._tensors or self._tensors[name][0] != path:
                    raise CheckpointError(
                        f"{self.folder / INDEX}: says {name} is in {path.name}, but that shard does not hold it; "
                        "download the folder again"
                    )
        self._stored_names = own_names(self.folder, self._tensors, prefix, beside)
        self._tensors = {name: self._tensors[stored] for name, stored in self._stored_names.items()}

    def names(self) -> list[str]:
        """All tensor names, in the order of the files."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, from its header."""
        return self._info(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """dtype of a tensor as stored."""
        return self._info(name).dtype

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        self._info(name)
        return self._tensors[name][0]

    def stored_name(self, name: str) -> str:
        """What that file calls it."""
        self._info(name)
        return self._stored_names[name]

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU: a view of the mapped file, valid as long as it is referenced. Do not write to it."""
        info = self._info(name)
        path = self._tensors[name][0]
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, framework="pt", device="cpu")
            tensor = self._files[path].get_tensor(self._stored_names[name])
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(f"{path}: {name} cannot be read: {fault}; download the file again") from None
        if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
            raise CheckpointError(f"{path}: changed while it was being read; load the model again")
        return tensor

    def close(self) -> None:
        """Forget the mapped files; tensors that were read keep theirs until they are dropped."""
        self._files.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder}: has no tensor {name}")
        return self._tensors[name][1]


def own_names(folder: Path, names: Iterable[str], prefix: str, beside: tuple[str, ...]) -> dict[str, str]:
    """{name without its prefix: name} of the tensors of a language model, without those that lie beside it.

    Raises:
        CheckpointError: a tensor that is neither.
    """
    own = [name for name in names if not name.startswith(beside)]
    if foreign := [name for name in own if not name.startswith(prefix)]:
        raise CheckpointError(
            f"{folder}: {listed(foreign)} is no tensor of the language model ({prefix}*), nor one that belongs beside "
            f"it ({', '.join(beside)}); use weights as they were published"
        )
    return {name.removeprefix(prefix): name for name in own}


def _find_weights(folder: Path) -> dict[Path, list[str]]:
    """The safetensors files of a folder, each with the tensors that the index says it holds."""
    if not folder.exists():
        raise MissingFileError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; give the folder that holds config.json and the weights")
    if (folder / SINGLE).exists():
        return {folder / SINGLE: []}
    if (folder / INDEX).exists():
        shards = read_shard_names(folder / INDEX, ".safetensors")
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            raise MissingFileError(
                f"{folder}: {INDEX} names {len(missing)} of {len(shards)} shards that are not there: "
                f"{listed(missing)}; download the folder again"
            )
        return {folder / name: tensors for name, tensors in shards.items()}
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if found := [name for name in files if name.endswith(PICKLED)]:
        command = shlex.join(["prosparse", "convert", str(folder), "-o", f"{folder}-safetensors"])
        raise CheckpointError(
            f"{folder}: only pickled weights ({listed(found)}), which are not opened here because a pickle can run "
            f"code; convert them once with `{command}`"
        )
    if found := [name for name in files if name.endswith(".gguf")]:
        raise UnsupportedError(f"{folder}: no safetensors, but {listed(found)}; give the path of the GGUF file")
    found = [name for name in files if name.endswith(".safetensors")]
    beside = f" (it holds {listed(found)}, which prosparse does not know)" if found else ""
    raise CheckpointError(
        f"{folder}: no weights: expected {SINGLE}, or {INDEX} and its shards{beside}; a repository that has only .bin "
        "weights is read by `prosparse convert`"
    )


def read_shard_names(index: Path, suffix: str) -> dict[str, list[str]]:
    """{shard: its tensors} of an index file, in the order of the shards.

    Raises:
        CheckpointError: no weight_map, or a shard that is not a plain file name with this suffix. Symbolic links are
            fine, since the Hugging Face cache is made of them, but no name may lead out of the folder.
    """
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map must be an object of tensor names and shards, got {show(weight_map)}"
        )
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        is_plain = isinstance(shard, str) and shard.endswith(suffix) and not set(shard) & {"/", "\\", "\0", ":"}
        if not is_plain:
            raise CheckpointError(
                f"{index}: {tensor} is in {show(shard)}; expected the name of a {suffix} file in this folder"
            )
        shards.setdefault(shard, []).append(tensor)
    return dict(sorted(shards.items()))


def listed(names: list[str], limit: int = 4) -> str:
    """Names for a message: the first few and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
