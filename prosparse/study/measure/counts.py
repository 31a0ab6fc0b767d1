"""What a pass over a text adds up: whole numbers only, so that parts of a text merge to the same bits as the whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from .bits import Array

UNION_SIZES = (2, 4, 8, 16, 32)
GROUP = max(UNION_SIZES)  # consecutive windows whose unions are taken together; shares are dealt in such groups
RATIO_BITS = 31  # a ratio is added up as a whole number of 2^-31, which no order of adding can change


@dataclass(eq=False)
class Counts:
    """Sums over windows. Sizes: layers, neurons, window (tokens of one), unions (`UNION_SIZES`).

    Args:
        windows: [1], how many were read.
        active: tokens in which a neuron's act(gate) * up was not zero, [layers, neurons].
        nonzero_at: neurons with act(gate) * up not zero, by position in the window, [layers, window].
        gate_open_at: the same with act(gate), [layers, window].
        near_zero: neurons with |act(gate)| below a limit, over all tokens, [layers].
        overlap: share of a token's active neurons that are active in the next token too, times 2^31, [layers].
        overlap_pairs: how many such shares there are, [layers].
        union_sequence: active neurons of 2, 4, .. neighbouring tokens together, [layers, unions].
        union_batch: the same for tokens at one position of 2, 4, .. windows, [layers, unions].
        batches: how many unions were added to each column of `union_batch`, [unions].
        predicted: neurons that the predictor chose, [layers].
        found: of these, active ones, [layers].
    """

    windows: Array
    active: Array
    nonzero_at: Array
    gate_open_at: Array
    near_zero: Array
    overlap: Array
    overlap_pairs: Array
    union_sequence: Array
    union_batch: Array
    batches: Array
    predicted: Array
    found: Array

    @classmethod
    def zeros(cls, layers: int, neurons: int, window: int) -> Counts:
        unions = len(UNION_SIZES)
        shapes: dict[str, tuple[int, ...]] = {
            "windows": (1,),
            "active": (layers, neurons),
            "nonzero_at": (layers, window),
            "gate_open_at": (layers, window),
            "union_sequence": (layers, unions),
            "union_batch": (layers, unions),
            "batches": (unions,),
        }
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.zeros(shapes.get(name, (layers,)), np.int64) for name in names})

    @property
    def tokens(self) -> int:
        return int(self.windows[0]) * self.window

    @property
    def layers(self) -> int:
        return self.active.shape[0]

    @property
    def neurons(self) -> int:
        return self.active.shape[1]

    @property
    def window(self) -> int:
        return self.nonzero_at.shape[1]

    def arrays(self) -> dict[str, Array]:
        """The sums by name; changing them changes the counts."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def add(self, other: Counts) -> None:
        """Add the sums of another part of the text.

        Raises:
            UserError: it is of another model or has windows of another length.
        """
        mine, theirs = self.arrays(), other.arrays()
        for name, total in mine.items():
            if total.shape != theirs[name].shape:
                raise UserError(
                    f"measure: {name} is {list(total.shape)} in one part and {list(theirs[name].shape)} in another; "
                    "parts must be of one model and one length of window"
                )
        for name, total in mine.items():
            total += theirs[name]
