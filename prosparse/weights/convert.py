"""Write a model folder anew: .bin weights as safetensors, or other formats of the same weights.

Memory holds about one matrix, and a conversion that was stopped goes on at the shard it was at. docs/formats.md says
what a folder with packed matrices looks like.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prosparse.kernels.quant import empty
from prosparse.kernels.weight import FLOATS, FORMAT_OF_DTYPE, FORMATS

from ..config import ModelConfig
from ..config.fields import read_json_object
from ..errors import UserError
from . import checkpoint as safe
from .checkpoint import Checkpoint
from .finite import check_finite
from .folder import resolve_model
from .formats import KEY, PACKED, VERSION, Formats, agree, check_asked, stored_formats
from .load import has_own_lm_head
from .names import check_names, expected_shapes, format_of, is_down, is_matrix, packed_shape
from .output import check_free, write_weights
from .pickled import PickledCheckpoint
from .reader import copy_matrix, wait
from .tables import Names, names_of
from .work_folder import fingerprint, work_folder
from .workers import block_workers
from .writer import Entry

SHARD_BYTES = 2 * 10**9  # what a conversion that is killed may have to do again
# What a tokenizer, a config and a licence come in; never code, and no weights of other formats
COPIED = ("*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*")
NOT_COPIED = ("*.index.json", "config.json")
Source = Checkpoint | PickledCheckpoint


class Rounding(Protocol):
    """Rounds matrices to int8 and int4 by rules of its own.

    Attributes:
        about: for config.json; with the source and the formats it decides the result.
    """

    about: dict[str, Any]

    def ordered(self, names: list[str]) -> list[str]:
        """Tensor names in the order in which they are wanted."""

    def packed(self, name: str, fmt: str) -> Tensor | None:
        """A matrix, in the shape of its packed tensor; None where rounding to nearest will do."""


def convert(
    source: str | Path,
    destination: str | Path,
    weights: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    lm_head: str = "auto",
    *,
    rounding: Callable[[Source, ModelConfig], Rounding] | None = None,
) -> Path:
    """Write a model as safetensors.

    Args:
        source: a folder with safetensors or .bin weights, or a Hugging Face id.
        destination: the new folder.
        weights: a weight format for every matrix; "auto" keeps each tensor as stored. Norms and biases follow a float
            format, and else stay as stored.
        overwrite: replace `destination` if it is a model folder.
        progress: called with (done, total) bytes written.
        lm_head: its weight format, and that of an embedding tied to it; "auto" is that of `weights`.
        rounding: makes what rounds to int8 and int4; None rounds to nearest.

    Returns:
        the destination.

    Raises:
        UserError: no such weight format; the destination exists or lies in the source; the source cannot be read, run,
            or brought into the format.
        MachineError: the disk is full or cannot be written, or another process writes the same destination.
    """
    asked = Formats(weights, lm_head)
    check_asked("convert", asked)
    folder, target = resolve_model(source, pickled=True), Path(destination).absolute()
    _check_apart(folder, target)
    check_free("convert", target, overwrite)
    config = ModelConfig.from_hf(folder)
    opened = _open(folder, config)
    check_names(opened, config)
    stored = stored_formats(folder)
    formats = agree("convert", folder, asked, stored)
    if formats.lm_head == "auto":
        formats = Formats(formats.weights, formats.weights)
    rounder = None
    if rounding is not None:
        _check_can_round(folder, formats, stored)
        rounder = rounding(opened, config)
    entries = list(_entries(opened, config, formats, rounder))
    about = None if rounder is None else rounder.about
    options: dict[str, object] = {"formats": [formats.weights, formats.lm_head], "rounding": about}
    made_of = fingerprint(folder, **options, version=VERSION, shard_bytes=SHARD_BYTES)
    with work_folder("convert", target, sum(entry.nbytes for entry in entries), made_of) as work:
        write_weights(work, entries, SHARD_BYTES, progress)
        _copy_files(folder, work)
        _write_config(folder, work, formats, opened.dtype(names_of(config).layer.gate.format(0, 0)), about)
        with Checkpoint(work, config.tensor_prefix) as written:
            check_names(written, config)
    return target


def _open(folder: Path, config: ModelConfig) -> Source:
    has_safetensors = (folder / safe.SINGLE).exists() or (folder / safe.INDEX).exists()
    kind = Checkpoint if has_safetensors else PickledCheckpoint
    return kind(folder, config.tensor_prefix, config.vision_prefixes)


def _check_can_round(folder: Path, formats: Formats, stored: Formats | None) -> None:
    if not formats.has_packed:
        raise UserError(
            f"convert: --calibrate is for int8 and int4, but --weights is {formats.weights} and --lm-head "
            f"{formats.lm_head}; add --weights int4"
        )
    if stored is not None and stored.has_packed:
        raise UserError(f"convert: {folder} is rounded already; give --calibrate the model it was converted from")


def _entries(source: Source, config: ModelConfig, formats: Formats, rounder: Rounding | None) -> Iterator[Entry]:
    names, sizes = names_of(config), expected_shapes(config)
    sizes[names.lm_head] = sizes[names.embed]
    # a .bin holds a tied lm_head as a second name of the embedding
    tied = config.tied_embeddings and not has_own_lm_head(source, names)
    for name in source.names() if rounder is None else rounder.ordered(source.names()):
        if names.harmless.fullmatch(name) or (tied and name == names.lm_head):
            continue
        size = sizes[name]
        whole = is_matrix(names, name, size)
        fmt = format_of(name, names, formats, tied) if whole else formats.weights
        if whole and fmt in PACKED:
            yield _packed(source, name, config.tensor_prefix, size, names, fmt, rounder)
        else:
            dtype = FLOATS.get(fmt, source.dtype(name))
            yield Entry(config.tensor_prefix + name, size, dtype, partial(_read_as, source, name, dtype))


def _packed(
    source: Source,
    name: str,
    prefix: str,
    size: tuple[int, ...],
    names: Names,
    fmt: str,
    rounder: Rounding | None,
) -> Entry:
    transpose = is_down(names, name)
    rows, columns = reversed(size) if transpose else size

    def produce() -> Tensor:
        rounded = None if rounder is None else rounder.packed(name, fmt)
        if rounded is not None:
            return rounded
        codes = empty(fmt, rows, columns)
        with block_workers() as workers:
            wait(copy_matrix(source, name, codes, fmt, columns, workers, transpose))
        return codes

    return Entry(prefix + name, packed_shape(name, size, names, fmt), FORMATS[fmt], produce)


def _read_as(source: Source, name: str, dtype: torch.dtype) -> Tensor:
    tensor = source.read(name).to(dtype)
    check_finite(source, name, tensor)
    return tensor


def _copy_files(source: Path, target: Path) -> None:
    skipped = {path for pattern in NOT_COPIED for path in source.glob(pattern)}
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()} - skipped):
        shutil.copyfile(path, target / path.name)


def _write_config(
    source: Path, target: Path, formats: Formats, stored: torch.dtype, about: dict[str, Any] | None
) -> None:
    """config.json with the formats in it; byte for byte the same where there is nothing to say."""
    config = read_json_object(source / "config.json")
    changed: dict[str, Any] = {key: value for key, value in config.items() if key != KEY}
    if formats.weights in FLOATS:
        name = str(FLOATS[formats.weights]).removeprefix("torch.")
        changed |= {key: name for key in ("torch_dtype", "dtype") if key in config}
    if formats.has_packed:
        kept = FORMAT_OF_DTYPE[stored]
        weights, lm_head = (kept if fmt == "auto" else fmt for fmt in (formats.weights, formats.lm_head))
        how = about or config.get(KEY, {}).get("rounding")  # a copy of what was calibrated still is
        changed[KEY] = {"version": VERSION, "weights": weights, "lm_head": lm_head} | ({"rounding": how} if how else {})
    if changed == config:
        shutil.copyfile(source / "config.json", target / "config.json")
    else:
        (target / "config.json").write_text(json.dumps(changed, indent=2) + "\n")


def _check_apart(source: Path, target: Path) -> None:
    if target.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(target.resolve()):
        raise UserError(f"convert: destination {target} and source {source} must not lie in each other")
