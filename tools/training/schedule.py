"""What changes during training, as functions of tokens seen: never of time, so a run may be paused and resumed.

The learning rate warms up, stays, and decays linearly to zero (warm-up, stable, decay: Hu et al., "MiniCPM", 2024), so
that any checkpoint of the stable part can be finished by a decay of its own.

The factor of the L1 penalty follows Song et al., "ProSparse" (2024): none at first, then one small constant factor (the
warm-up stage), then stages in which the factor climbs from the last one to the next along the rising half of a sine,
slow at both ends, so that neurons are pushed to zero without a jump.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Tokens at which things change, and the factors.

    Attributes:
        warmup, decay_from, total: tokens at which the learning rate is at its peak, begins to fall, and is zero.
        l1: factors of the warm-up stage and of the end of each sine stage; empty for no penalty.
        l1_ends: shares of `total` at which the part without penalty, the warm-up stage and each sine stage end.
    """

    warmup: int
    decay_from: int
    total: int
    l1: tuple[float, ...] = ()
    l1_ends: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= max(0, self.decay_from) <= self.total:
            raise SystemExit(
                f"schedule: warm-up ends at {self.warmup}, decay begins at {self.decay_from} of {self.total} tokens; "
                "they must be in this order"
            )
        if self.l1 and (len(self.l1_ends) != len(self.l1) + 1 or list(self.l1_ends) != sorted(self.l1_ends)):
            raise SystemExit(
                f"--l1-ends: {len(self.l1)} factors need {len(self.l1) + 1} ascending shares, got {self.l1_ends}"
            )

    def lr_factor(self, tokens: int) -> float:
        """Share of the peak learning rate for the step that begins after `tokens`."""
        if tokens < self.decay_from:
            return min(1.0, (tokens + 1) / max(1, self.warmup))
        return max(0.0, (self.total - tokens) / max(1, self.total - self.decay_from))

    def l1_factor(self, tokens: int) -> float:
        """Factor of the L1 penalty for the step that begins after `tokens`."""
        share = tokens / self.total
        if not self.l1 or share < self.l1_ends[0]:
            return 0.0
        if share < self.l1_ends[1]:
            return self.l1[0]
        stages = zip(self.l1_ends[1:], self.l1_ends[2:], self.l1, self.l1[1:], strict=False)
        for start, end, low, high in stages:
            if share < end:
                phase = math.pi * ((share - start) / (end - start) - 0.5)
                return low + (high - low) * (math.sin(phase) + 1) / 2
        return self.l1[-1]

    def decayed_from(self, tokens: int, decay: int) -> Schedule:
        """The schedule that decays from now on and ends after `decay` more tokens; the L1 stages keep their tokens.

        A decay that is already under way goes on from where it is, slower or faster.
        """
        total = tokens + decay
        decay_from = round(total - decay / max(self.lr_factor(tokens), 1e-9))  # before now, where it is under way
        ends = tuple(end * self.total / total for end in self.l1_ends)
        return replace(
            self, warmup=min(self.warmup, max(0, decay_from)), decay_from=decay_from, total=total, l1_ends=ends
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, object]) -> Schedule:
        return Schedule(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})  # type: ignore
