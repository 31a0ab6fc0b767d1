"""Sizes as people write them: 8GiB, 7.2GiB, 8GB, 512MiB."""

from __future__ import annotations

import math
import re

from ..errors import UserError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes of a size; a number without a unit is bytes.

    Args:
        text: for example "8GiB" (2^33 bytes) or "8GB" (8 * 10^9).
        what: how messages name it.

    Raises:
        UserError: not a size, or less than one byte.
    """
    found = None if isinstance(text, bool) else WRITTEN.fullmatch(str(text))
    unit = None if found is None else UNITS.get(found[2].upper())
    if found is None or unit is None:
        raise UserError(f"{what}: {text!r} is no size; write for example 8GiB, 7.2GiB, 8GB or 512MiB")
    nbytes = float(found[1]) * unit
    if not math.isfinite(nbytes) or not 1 <= nbytes < 2**63:
        raise UserError(f"{what}: {text!r} must be from 1 byte to less than 8 EiB")
    return int(nbytes)


def show_size(nbytes: float) -> str:
    """Bytes for a person."""
    return f"{nbytes / 2**30:.2f} GiB" if abs(nbytes) >= 2**29 else f"{nbytes / 2**20:.1f} MiB"
