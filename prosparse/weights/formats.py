"""Which weight formats a model is asked for, and which ones a converted folder holds.

A folder with packed matrices says so in its config.json; docs/formats.md describes such a folder.

    "prosparse_quantization": {"version": 1, "weights": "int4", "lm_head": "int8"}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prosparse.kernels.quant import GROUP
from prosparse.kernels.weight import FORMATS

from ..config.fields import Fields, read_json_object
from ..errors import UnsupportedError, UserError

KEY = "prosparse_quantization"
VERSION = 1  # of the packing and of the key; a change of either that old readers would misread raises it
PACKED = frozenset(GROUP)


@dataclass(frozen=True)
class Formats:
    """Weight formats of a model's matrices.

    Args:
        weights: of all matrices but lm_head.
        lm_head: of lm_head, and of the embedding where that is the same table.
    """

    weights: str
    lm_head: str

    @property
    def has_packed(self) -> bool:
        """Whether some matrix is int8 or int4."""
        return not PACKED.isdisjoint((self.weights, self.lm_head))


def check_asked(op: str, asked: Formats) -> None:
    """Raise UserError unless each is "auto" or a weight format."""
    for key, fmt in (("weights", asked.weights), ("lm_head", asked.lm_head)):
        if fmt != "auto" and fmt not in FORMATS:
            raise UserError(f"{op}: {key} is {fmt!r}; supported are auto, {', '.join(FORMATS)}")


def stored_formats(folder: Path) -> Formats | None:
    """What the config.json of a folder says of packed matrices; None where it says nothing.

    Raises:
        ConfigError: the key is malformed.
        UnsupportedError: it is of a version that this prosparse does not know.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    table = Fields(read_json_object(path), str(path)).table(KEY)
    if table is None:
        return None
    version = table.whole("version")
    if version != VERSION:
        raise UnsupportedError(
            f"{table.where} has version {version}, but this prosparse reads version {VERSION}; update prosparse, or "
            "convert the original model again"
        )
    found = Formats(table.text("weights"), table.text("lm_head"))
    for key in ("weights", "lm_head"):
        if getattr(found, key) not in FORMATS:
            raise table.wrong(key, f"one of {', '.join(FORMATS)}")
    return found


def agree(op: str, folder: Path, asked: Formats, stored: Formats | None) -> Formats:
    """What is asked for, as far as the folder decides it: "auto" becomes the format that a packed part is stored in.

    Raises:
        UserError: a packed part is asked for in another format.
    """
    if stored is None:
        return asked
    weights = _agree(op, folder, "--weights", asked.weights, stored.weights)
    lm_head = _agree(op, folder, "--lm-head", asked.lm_head, stored.lm_head)
    return Formats(weights, stored.lm_head if lm_head == "auto" else lm_head)


def _agree(op: str, folder: Path, option: str, asked: str, stored: str) -> str:
    if stored not in PACKED:
        return asked
    if asked not in ("auto", stored):
        raise UserError(
            f"{op}: {option} is {asked}, but {folder} holds {stored}, which stays as it is; leave {option} out, or "
            "take the model it was converted from"
        )
    return stored
