"""The times of single calls inside a row: small enough to be committed, exact enough to be drawn from again.

A sample is kept as its quotient by the median in half precision, which rounds by at most 0.05 %; all of them are one
word of base64, 2.7 characters each. They stay in the order of the rounds, so that subjects of one run remain paired.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from prosparse.errors import UserError

from .clock import Samples, Timing


def pack(timing: Timing) -> str:
    """Times as text; `unpack` needs the median beside it."""
    quotients = np.clip(timing.us / timing.median, 0.0, float(np.finfo(np.float16).max))
    return base64.b64encode(quotients.astype("<f2").tobytes()).decode("ascii")


def unpack(row: Mapping[str, Any]) -> Samples | None:
    """The times of a row in microseconds; None where it holds none.

    Raises:
        UserError: what it holds is no list of times.
    """
    text = row.get("samples")
    if text is None:
        return None
    try:
        quotients = np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float64)
    except (TypeError, ValueError, binascii.Error):
        quotients = np.empty(0)
    if not quotients.size or not np.isfinite(quotients).all():
        raise UserError(f"bench: samples of a {row.get('subject')} row are no times; write the row anew")
    return quotients * row["median_us"]
