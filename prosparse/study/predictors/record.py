"""What training reads: inputs and active sets of some layers, on the disk, one row per token.

    {layer}.x.npy        [tokens, hidden] float16, the normed input of the FFN
    {layer}.active.npy   [tokens, ceil(neurons / 8)] uint8, one bit per neuron

The files are mapped; memory holds one window. A run that was killed goes on at the last window that was noted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...engine import Engine
from ...errors import MachineError
from ...weights.whole_files import write_whole
from .calibration import Progress, read

NOTE = "recorded.json"
NOTED_EVERY = 8  # windows
LARGEST = 65504.0  # of float16


def bytes_per_token(hidden: int, neurons: int) -> int:
    """On the disk, of one layer."""
    return 2 * hidden + -(-neurons // 8)


@dataclass(frozen=True)
class Rows:
    """One layer's recording.

    Args:
        inputs: [tokens, hidden] float16, mapped.
        bits: [tokens, ceil(neurons / 8)] uint8, mapped.
        neurons: of the layer.
    """

    inputs: npt.NDArray[np.float16]
    bits: npt.NDArray[np.uint8]
    neurons: int

    def take(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs [rows, hidden] float32 and which neurons are active, [rows, neurons] bool."""
        order = np.sort(rows.numpy())  # a disk likes it
        active = np.unpackbits(self.bits[order], axis=1, count=self.neurons)
        return torch.from_numpy(self.inputs[order]).to(device).float(), torch.from_numpy(active).to(device).bool()


def record(
    engine: Engine, windows: Tensor, layers: Sequence[int], folder: Path, progress: Progress | None = None
) -> dict[int, Rows]:
    """Record some layers while the engine reads windows [windows, tokens]; what is there already is kept.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    config, length = engine.config, windows.shape[1]
    asked = {"layers": list(layers), "windows": list(windows.shape), "hidden": config.hidden, "neurons": config.neurons}
    done = _noted(folder, asked)
    columns = {"x": (config.hidden, np.float16), "active": (-(-config.neurons // 8), np.uint8)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            (layer, name): np.lib.format.open_memmap(
                folder / f"{layer}.{name}.npy", "r+" if done else "w+", dtype, (windows.numel(), width)
            )
            for layer in layers
            for name, (width, dtype) in columns.items()
        }
    except OSError as fault:
        raise MachineError(f"{folder}: cannot be recorded to: {fault.strerror}; choose another place") from fault
    at = done * length

    def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> None:
        if (layer, "x") in files:
            rows = slice(at + seen[layer], at + seen[layer] + len(x))
            files[layer, "x"][rows] = x.clamp(-LARGEST, LARGEST).half().cpu().numpy()
            files[layer, "active"][rows] = np.packbits((h != 0).cpu().numpy(), axis=1)
            seen[layer] += len(x)

    for number in range(done, len(windows)):
        seen = dict.fromkeys(layers, 0)  # a window may come in several chunks
        read(engine, windows[number : number + 1], view)
        at += length
        if (number + 1) % NOTED_EVERY == 0 or number + 1 == len(windows):
            for file in files.values():
                file.flush()
            write_whole({folder / NOTE: json.dumps({**asked, "done": number + 1}).encode()})
        if progress is not None:
            progress("recording", at, windows.numel())
    return {layer: Rows(files[layer, "x"], files[layer, "active"], config.neurons) for layer in layers}


def _noted(folder: Path, asked: dict[str, Any]) -> int:
    """Windows of the same recording that are on the disk."""
    try:
        note = json.loads((folder / NOTE).read_text())
        done = int(note.pop("done"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
    return done if note == asked else 0
