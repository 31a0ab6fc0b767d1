"""The dense block beside an exact one: the same layer over the same weights, which computes the same and reads all."""

from __future__ import annotations

from typing import Any

from .ffn import DenseFFN, ExactFFN, GatedFFN
from .plain import PlainDenseFFN, PlainExactFFN, PlainFFN


def dense_twin(ffn: object) -> GatedFFN | PlainFFN | None:
    """The dense block with an exact block's weights; None for any other block."""
    twins: dict[type, Any] = {ExactFFN: DenseFFN, PlainExactFFN: PlainDenseFFN}
    make = twins.get(type(ffn))
    if make is None:
        return None
    assert isinstance(ffn, GatedFFN | PlainFFN), "only these have twins"
    return make(*ffn.parts())
