"""How far one distribution over the next token is from another, and how sure a mean of it is.

kl = sum p log(p / q)      p: baseline, q: subject; nats per token, 0 where they agree
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64  # predictions resampled together: neighbours share their context, so they are not independent
RESAMPLES = 2000
FEWEST_BLOCKS = 10  # below, an interval would say more about the blocks than about the text


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap 95 % interval; low and high are None where there are too few blocks for one."""

    value: float
    low: float | None
    high: float | None


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each row in nats: logits [rows, vocab] float64, targets [rows] int64; returns [rows] float64."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def kl_divergence(baseline: Tensor, subject: Tensor) -> Tensor:
    """KL(baseline || subject) of each row in nats: logits [rows, vocab] float64 each; returns [rows] float64."""
    log_p, log_q = baseline.log_softmax(1), subject.log_softmax(1)
    # a true zero weighs nothing, whatever the subject says; rounding may leave less than 0
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    return terms.sum(1).clamp_min(0.0)


def bootstrap(values: Tensor, seed: int = 0) -> Interval:
    """The mean of [windows, length] float64, and its percentile interval over blocks of `BLOCK` predictions."""
    mean = float(values.mean())
    blocks = [block for window in values for block in _blocks(window)]
    if len(blocks) < FEWEST_BLOCKS:
        return Interval(mean, None, None)
    sums = torch.stack([block.sum() for block in blocks])
    sizes = torch.tensor([block.numel() for block in blocks], dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(RESAMPLES):  # one at a time: memory does not grow with the text
        drawn = torch.randint(len(blocks), (len(blocks),), generator=rng)
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    low, high = torch.quantile(torch.stack(means), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean, low, high)


def _blocks(window: Tensor) -> tuple[Tensor, ...]:
    """A window in blocks of `BLOCK`; the last one is longer where that does not divide the window."""
    count = max(1, window.numel() // BLOCK)
    return window.tensor_split([BLOCK * i for i in range(1, count)])
