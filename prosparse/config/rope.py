"""Rotary embedding, and its scaling in Hugging Face's three spellings.

v4:  "rope_theta": t, "rope_scaling": {"type" or "rope_type": kind, "factor": f, ...} or null
v5:  "rope_parameters": {"rope_theta": t, "rope_type": kind, "factor": f, ...}
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError, UnsupportedError
from .fields import Fields

ROPE_KINDS = ("default", "linear", "dynamic", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Args:
        kind: one of `ROPE_KINDS`, or "none": nothing is turned.
        theta: base of the frequencies.
        factor: scaling factor of the kinds other than default.
        low_freq_factor, high_freq_factor, original_max_position: of llama3.

    Raises:
        ConfigError: a kind that is not known, or constants that are not finite and above 0.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (*ROPE_KINDS, "none"):
            raise ConfigError(f"rope: kind is {self.kind!r}; supported are {', '.join(ROPE_KINDS)}")
        for name in ("theta", "factor", "low_freq_factor", "high_freq_factor"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"rope: {name} must be a finite number above 0, got {value!r}")


def read_rope(fields: Fields, max_position: int) -> RopeConfig:
    """The rotary embedding of a config; keys inside rope_parameters come before those beside it.

    Raises:
        ConfigError: a key missing or of the wrong type.
        UnsupportedError: a kind of scaling that prosparse does not compute.
    """
    theta = fields.number("rope_theta", 10000.0)
    scaling = fields.table("rope_parameters") or fields.table("rope_scaling") or Fields({}, fields.where)
    theta = scaling.number("rope_theta", theta)
    key = "rope_type" if "rope_type" in scaling.data else "type"
    kind = scaling.text(key, "default")
    if kind not in ROPE_KINDS:
        raise UnsupportedError(f"{scaling.where}: {key} is {kind!r}; supported are {', '.join(ROPE_KINDS)}")
    for part in (fields, scaling):
        if part.number("partial_rotary_factor", 1.0) != 1:
            raise UnsupportedError(f"{part.where}: partial_rotary_factor must be 1: only full rotary embeddings run")
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = scaling.number("factor")
    if factor < 1:
        raise scaling.wrong("factor", "at least 1")
    if kind != "llama3":
        return RopeConfig(kind, theta, factor)
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"above low_freq_factor ({low:g})")
    original = scaling.whole("original_max_position_embeddings", max_position)
    return RopeConfig(kind, theta, factor, low, high, original)
