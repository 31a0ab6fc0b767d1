"""The tensors of a GGUF file under Hugging Face's names, in its shapes and its order of rows."""

from __future__ import annotations

import mmap
import warnings

import torch
from torch import Tensor

from ...config import ModelConfig
from ...errors import CheckpointError
from ..checkpoint import Checkpoint
from ..formats import Formats
from ..header import TensorInfo
from ..tables import LLAMA
from .file import GgufFile
from .kinds import Blocks
from .names import check_tensors, is_turned, row_order


def map_tensor(file: GgufFile, name: str) -> Tensor:
    """The bytes of a tensor, [rows, bytes of a row] or [bytes] uint8, mapped and not to be written to.

    Raises:
        CheckpointError: the file has changed since its header was read.
    """
    info = file.tensors[name]
    if not info.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    page = info.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        with file.path.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), info.start - page + info.nbytes, access=mmap.ACCESS_READ, offset=page)
    except (OSError, ValueError):
        raise CheckpointError(f"{file.path}: changed while it was being read; load the model again") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that cannot be written to, which is what is wanted
        data = torch.frombuffer(mapped, dtype=torch.uint8, offset=info.start - page, count=info.nbytes)
    return data if len(info.shape) == 1 else data.view(info.shape[0], -1)


def floats(file: GgufFile, name: str) -> Tensor:
    """A tensor as it is stored, in its shape; quantised ones as float32."""
    info, data = file.tensors[name], map_tensor(file, name)
    if info.kind.unpack is None:
        return data.view(info.kind.dtype).view(info.shape)
    return info.kind.unpack(data.unflatten(-1, (-1, info.kind.nbytes))).view(info.shape)


class GgufCheckpoint(Checkpoint):
    """What `Checkpoint` is for a folder of safetensors. Each read maps the tensor anew, so there is nothing to close.

    Args:
        file: its header.
        config: read from that header.

    Raises:
        CheckpointError, UnsupportedError: the file does not hold the model of its keys.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self.folder, self.file, self._config, self._files = file.path, file, config, {}
        self._stored_names = check_tensors(file, config)
        self._tensors = {name: (file.path, _info(file, stored)) for name, stored in self._stored_names.items()}

    def read(self, name: str) -> Tensor:
        """A whole tensor: float32 where it is quantised, else a view or, of q and k, a copy."""
        self._info(name)
        tensor = floats(self.file, self._stored_names[name])
        order = row_order(name, self._config)
        if order is not None:
            return tensor[order]
        return tensor.t() if is_turned(self._stored_names[name]) else tensor

    def matrix(self, name: str) -> Tensor | Blocks:
        """A matrix of which parts can be taken without making floats of the whole."""
        stored = self.file.tensors[self._stored_names[name]]
        if stored.kind.unpack is None:
            return self.read(name)
        data = map_tensor(self.file, self._stored_names[name])
        return Blocks(data, stored.kind, row_order(name, self._config), is_turned(self._stored_names[name]))

    def formats(self, asked: Formats) -> Formats:
        """What is asked for, with "auto" made the format that keeps what is stored best, of lm_head by itself."""
        weights = self._format(LLAMA.layer.gate.format(0)) if asked.weights == "auto" else asked.weights
        if asked.lm_head != "auto" or asked.weights != "auto":
            return Formats(weights, asked.lm_head)
        return Formats(weights, self._format(LLAMA.embed if self._config.tied_embeddings else LLAMA.lm_head))

    def _format(self, name: str) -> str:
        found = self.file.tensors[self._stored_names[name]].kind.format
        assert found is not None, "check_tensors let something through that is no weight"
        return found


def _info(file: GgufFile, name: str) -> TensorInfo:
    stored = file.tensors[name]
    shape = stored.shape[::-1] if is_turned(name) else stored.shape
    return TensorInfo(stored.kind.dtype, shape, stored.start, stored.start + stored.nbytes)
