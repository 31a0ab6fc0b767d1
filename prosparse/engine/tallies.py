"""What the FFNs of a decoder did: one tensor of counters for each run of its layers, see `Decoder.new_tally`."""

from __future__ import annotations

from torch import Tensor

Tally = Tensor | list[Tensor]


def parts_of(tally: Tally) -> list[Tensor]:
    """Of each run of layers: see `Decoder.new_tally`."""
    return [tally] if isinstance(tally, Tensor) else tally


def counts_of(tally: Tally) -> list[list[int]]:
    """What is counted, per layer: see `kernels.tally`."""
    return [layer for part in parts_of(tally) for layer in part.tolist()]


def copied(tally: Tally) -> Tally:
    """Another one with the same counts."""
    return tally.clone() if isinstance(tally, Tensor) else [part.clone() for part in tally]


def copy(source: Tally, to: Tally) -> None:
    """Set the counts of one to those of another."""
    for own, other in zip(parts_of(to), parts_of(source), strict=True):
        own.copy_(other)
