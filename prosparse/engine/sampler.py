"""The next token of one request.

Logits pass the filters in the order of transformers' generate: repetition penalty, temperature, top-k, top-p, min-p.
What survives is drawn by inverting its cumulative distribution at one uniform number, in vocabulary order, so that a
rounding difference between two ways of computing the same logits moves the choice as little as possible.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from ..config import SamplingParams
from ..errors import MachineError

FLOAT32_MAX = torch.finfo(torch.float32).max
CURE = (
    "the weights hold such values, or float16 overflowed: load the model with weights=bf16 or fp32, or fetch the "
    "checkpoint anew"
)
NUCLEUS = 1024  # tokens; top-p on a language model's distribution rarely keeps as many


class Sampler:
    """Chooses tokens for one request, from its own random generator.

    Args:
        params: how to choose.
        vocab: size of the logits.

    Attributes:
        seed: of the generator; drawn from the operating system where params names none.
    """

    def __init__(self, params: SamplingParams, vocab: int) -> None:
        self.params = params
        self.vocab = vocab
        self.seed = int.from_bytes(os.urandom(8), "big") >> 1 if params.seed is None else params.seed
        self._generator = torch.Generator().manual_seed(self.seed)  # on the CPU: the same draws whatever the device

    def choose(self, logits: Tensor, seen: Tensor) -> int:
        """The next token.

        Args:
            logits: [vocab] float32; -inf forbids a token.
            seen: [n] int64, the prompt and what was generated, for the repetition penalty.

        Raises:
            ValueError: logits of another shape or dtype.
            MachineError: logits with NaN or +inf, or without any finite value.
        """
        if logits.shape != (self.vocab,) or logits.dtype != torch.float32:
            raise ValueError(
                f"sampler: logits must be [{self.vocab}] float32, got {list(logits.shape)} {logits.dtype}; "
                "pass the last row of the step's logits, as float32"
            )
        scores = penalize(logits, seen, self.params.repetition_penalty)
        top, token = scores.max(dim=0)  # one reduction: NaN wins it, +inf too, and ties go to the first
        peak = float(top)
        if not math.isfinite(peak):
            raise _not_finite(logits, self.params.repetition_penalty)
        temperature = self.params.temperature
        # A temperature this close to 0 overflows float32, and its limit is greedy.
        if self.params.greedy or max(abs(peak), 1.0) / temperature > FLOAT32_MAX:
            return int(token)
        ids, probabilities = survivors(scores / temperature, self.params)
        return int(ids[self._draw(probabilities)])

    def _draw(self, probabilities: Tensor) -> int:
        cumulative = probabilities.double().cumsum(0)
        total = float(cumulative[-1])
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        # Strictly below the total, so that the first entry above the target is one with a probability above 0.
        target = min(uniform * total, math.nextafter(total, 0.0))
        return int(torch.searchsorted(cumulative, target, right=True))


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits with those of tokens already seen made less likely (more, for a penalty below 1); [vocab]."""
    if penalty == 1.0 or seen.numel() == 0:
        return logits
    seen = seen.to(logits.device)
    scores = logits[seen]
    return logits.scatter(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def survivors(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens that top-k, top-p and min-p leave.

    Args:
        scores: [vocab] float32, already divided by the temperature, with a finite maximum.

    Returns:
        ids [n] int64, ascending, and their probabilities [n] float32, both on the CPU. Ties with the k-th token of
        top-k survive, as in transformers.
    """
    if 0 < params.top_k < scores.numel():
        kth = scores.topk(params.top_k).values[-1]
        ids = (scores >= kth).nonzero().squeeze(1)
        ids, scores = ids.cpu(), scores[ids].cpu()
    else:
        ids, scores = torch.arange(scores.numel()), scores.cpu()
    probabilities = scores.softmax(0)
    if params.top_p < 1:
        kept = _nucleus(scores, probabilities, params.top_p)
        ids, scores = ids[kept], scores[kept]
        probabilities = scores.softmax(0)
    if params.min_p > 0:
        kept = (probabilities >= params.min_p * probabilities.max()).nonzero().squeeze(1)
        ids, scores = ids[kept], scores[kept]
        probabilities = scores.softmax(0)
    return ids, probabilities


def _nucleus(scores: Tensor, probabilities: Tensor, top_p: float) -> Tensor:
    """Positions, ascending, of the smallest set whose probability reaches top_p; [n] int64."""
    excess = 1 - top_p
    # Tokens that together hold at most the excess go without being sorted (a sort of 128k takes 18 ms on one core of
    # an AMD EPYC, this 2 ms): all but the likeliest 1024 where that is true of them, else those of at most excess / n.
    large = probabilities >= probabilities.topk(min(NUCLEUS, len(probabilities))).values[-1]
    if probabilities[~large].sum() > excess:
        large = probabilities > excess / len(probabilities)
    below = probabilities[~large].sum()
    candidates = large.nonzero().squeeze(1)
    order = scores[candidates].sort(stable=True).indices
    dropped = below + probabilities[candidates[order]].cumsum(0) <= excess
    dropped[-1] = False
    large[candidates[order[dropped]]] = False
    return large.nonzero().squeeze(1)


def check_peak(peak: float) -> None:
    """Raise MachineError for a largest logit that is none; of a greedy choice that was made without the host."""
    if not math.isfinite(peak):
        raise MachineError(f"sampler: the logits are not finite (the largest is {peak}); {CURE}")


def _not_finite(logits: Tensor, penalty: float) -> MachineError:
    nan, infinite = int(logits.isnan().sum()), int(logits.isposinf().sum())
    if nan or infinite:
        return MachineError(
            f"sampler: the logits are not finite ({nan} NaN and {infinite} +inf of {logits.numel()}); {CURE}"
        )
    if logits.isfinite().any():
        return MachineError(
            f"sampler: repetition_penalty={penalty:g} takes the logits out of float32's range; use one nearer to 1"
        )
    return MachineError(f"sampler: all {logits.numel()} logits are -inf, so no token can follow; check the weights")
