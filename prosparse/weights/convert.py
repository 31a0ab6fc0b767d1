"""Write a model folder anew: .bin weights as safetensors, or another format of the same weights.

The new folder appears whole or not at all: it is written beside its destination and renamed at the end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from prosparse.kernels.weight import FORMATS

from ..config import ModelConfig
from ..config.fields import read_json_object
from ..errors import MachineError, UnsupportedError, UserError
from . import checkpoint as safe
from .checkpoint import Checkpoint
from .finite import check_finite
from .folder import resolve_model
from .names import TABLES, check_names
from .pickled import PickledCheckpoint
from .writer import Entry, split_shards, write_safetensors

SHARD_BYTES = 5 * 10**9  # the size at which transformers splits
# What a tokenizer, a config and a licence come in; never code, and no weights of other formats
COPIED = ("*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*")
NOT_COPIED = ("*.index.json",)


def convert(
    source: str | Path,
    destination: str | Path,
    weights: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model as safetensors.

    Args:
        source: a folder with safetensors or .bin weights, or a Hugging Face id.
        destination: the new folder.
        weights: "fp32", "fp16" or "bf16" for every tensor; "auto" keeps each as stored.
        overwrite: replace `destination` if it is a model folder.
        progress: called with (done, total) bytes written.

    Returns:
        the destination.

    Raises:
        UserError: the destination exists or lies in the source; the source cannot be read or run.
        UnsupportedError: a weight format that is not written.
        MachineError: the disk is full or cannot be written.
    """
    if weights != "auto" and weights not in FORMATS:
        raise UnsupportedError(f"convert: weights is {weights!r}; supported are auto, {', '.join(FORMATS)}")
    folder, target = resolve_model(source, pickled=True), Path(destination).absolute()
    _check_destination(folder, target, overwrite)
    config = ModelConfig.from_hf(folder)
    entries = _entries(_open(folder), config, None if weights == "auto" else FORMATS[weights])
    total = sum(entry.nbytes for entry in entries)
    with _beside(target) as temporary:
        free = shutil.disk_usage(temporary).free
        if total > free:
            raise MachineError(f"convert: {target} needs {total / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free")
        _write_weights(temporary, entries, total, progress)
        _copy_files(folder, temporary, weights)
        with Checkpoint(temporary) as written:
            check_names(written, config)
    return target


def _open(folder: Path) -> Checkpoint | PickledCheckpoint:
    has_safetensors = (folder / safe.SINGLE).exists() or (folder / safe.INDEX).exists()
    return Checkpoint(folder) if has_safetensors else PickledCheckpoint(folder)


def _entries(source: Checkpoint | PickledCheckpoint, config: ModelConfig, dtype: torch.dtype | None) -> list[Entry]:
    check_names(source, config)
    table = TABLES[config.family]
    names = [name for name in source.names() if not table.harmless.fullmatch(name)]
    # a .bin holds a tied lm_head as a second name of the embedding
    if config.tied_embeddings and table.lm_head in source:
        if torch.equal(source.read(table.lm_head), source.read(table.embed)):
            names.remove(table.lm_head)
    return [
        Entry(name, source.shape(name), to, partial(_read_as, source, name, to))
        for name in names
        for to in [dtype or source.dtype(name)]
    ]


def _read_as(source: Checkpoint | PickledCheckpoint, name: str, dtype: torch.dtype) -> torch.Tensor:
    tensor = source.read(name).to(dtype)
    check_finite(source, name, tensor)
    return tensor


def _write_weights(folder: Path, entries: list[Entry], total: int, progress: Callable[[int, int], None] | None) -> None:
    done = 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    shards = split_shards(entries, SHARD_BYTES)
    if len(shards) == 1:
        write_safetensors(folder / safe.SINGLE, shards[0], written)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, written)
        weight_map |= dict.fromkeys((entry.name for entry in shard), file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / safe.INDEX).write_text(json.dumps(index, indent=2))


def _copy_files(source: Path, target: Path, weights: str) -> None:
    skipped = {path for pattern in NOT_COPIED for path in source.glob(pattern)}
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()} - skipped):
        shutil.copyfile(path, target / path.name)
    if weights == "auto":
        return
    config = read_json_object(source / "config.json")
    name = str(FORMATS[weights]).removeprefix("torch.")
    config |= {key: name for key in ("torch_dtype", "dtype") if key in config}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _check_destination(source: Path, target: Path, overwrite: bool) -> None:
    if target.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(target.resolve()):
        raise UserError(f"convert: destination {target} and source {source} must not lie in each other")
    if not target.exists():
        return
    if not overwrite:
        raise UserError(f"convert: {target} exists; choose another destination, or --overwrite to replace it")
    # replacing deletes, so it must be clear that this is a model and not somebody's work
    has_weights = (target / safe.SINGLE).exists() or (target / safe.INDEX).exists()
    if not (target.is_dir() and (target / "config.json").exists() and has_weights):
        raise UserError(f"convert: {target} exists and is no model folder with safetensors; it is not replaced")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` if the block succeeds, and disappears if it does not."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        _move(temporary, target)
    except OSError as fault:
        if isinstance(fault, UserError):
            raise
        why = "the disk is full" if fault.errno == errno.ENOSPC else fault.strerror
        raise MachineError(f"convert: {target} cannot be written: {why}; choose another destination") from fault
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.replace(temporary, target)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-old-", dir=target.parent) as old:
        os.replace(target, Path(old, "model"))
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(Path(old, "model"), target)
            raise
