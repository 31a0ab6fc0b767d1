"""The next token of one request.

Logits pass the filters in the order of transformers' generate: repetition penalty, temperature, top-k, top-p, min-p.
What survives is drawn by inverting its cumulative distribution at one uniform number, in vocabulary order, so that a
rounding difference between two ways of computing the same logits moves the choice as little as possible.

All but the largest logit is NumPy's: PyTorch would share 73,000 numbers among threads, which then spin for milliseconds
on the cores that the next step needs.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import SamplingParams
from ..errors import MachineError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
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
        penalty, temperature = self.params.repetition_penalty, self.params.temperature
        if self.params.greedy and penalty == 1.0:
            top, place = logits.max(dim=0)  # one reduction: NaN wins it, +inf too, and ties go to the first
            return self._checked(logits, int(place), float(top))
        scores = penalize(logits.cpu().numpy(), seen.numpy(), penalty)
        token = int(scores.argmax())  # of the same rules
        peak = float(scores[token])
        self._checked(logits, token, peak)
        # A temperature this close to 0 overflows float32, and its limit is greedy.
        if self.params.greedy or max(abs(peak), 1.0) / temperature > FLOAT32_MAX:
            return token
        with np.errstate(over="ignore"):  # to -inf, of tokens that can hardly follow
            scores = scores / np.float32(temperature)
        ids, probabilities = survivors(scores, self.params)
        return int(ids[self._draw(probabilities)])

    def _checked(self, logits: Tensor, token: int, peak: float) -> int:
        if not math.isfinite(peak):
            raise _not_finite(logits, self.params.repetition_penalty)
        return token

    def _draw(self, probabilities: Floats) -> int:
        cumulative = probabilities.cumsum(dtype=np.float64)
        total = float(cumulative[-1])
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        # Strictly below the total, so that the first entry above the target is one with a probability above 0.
        target = min(uniform * total, math.nextafter(total, 0.0))
        return int(np.searchsorted(cumulative, target, side="right"))


def penalize(logits: Floats, seen: Ints, penalty: float) -> Floats:
    """Logits with those of tokens already seen made less likely (more, for a penalty below 1); [vocab]."""
    if penalty == 1.0 or seen.size == 0:
        return logits
    scores, factor = logits[seen], np.float32(penalty)
    penalized = logits.copy()
    with np.errstate(over="ignore"):  # what leaves the range is said by `choose`
        penalized[seen] = np.where(scores < 0, scores * factor, scores / factor)
    return penalized


def survivors(scores: Floats, params: SamplingParams) -> tuple[Ints, Floats]:
    """The tokens that top-k, top-p and min-p leave.

    Args:
        scores: [vocab] float32, already divided by the temperature, with a finite maximum.

    Returns:
        ids [n] int64, ascending, and their probabilities [n] float32. Ties with the k-th token of top-k survive, as in
        transformers.
    """
    if 0 < params.top_k < scores.size:
        kth = np.partition(scores, -params.top_k)[-params.top_k]
        ids = np.flatnonzero(scores >= kth)
        scores = scores[ids]
    else:
        ids = np.arange(scores.size)
    probabilities = _softmax(scores)
    if params.top_p < 1:
        kept = _nucleus(scores, probabilities, params.top_p)
        ids, scores = ids[kept], scores[kept]
        probabilities = _softmax(scores)
    if params.min_p > 0:
        kept = np.flatnonzero(probabilities >= np.float32(params.min_p) * probabilities.max())
        ids, scores = ids[kept], scores[kept]
        probabilities = _softmax(scores)
    return ids, probabilities


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def _nucleus(scores: Floats, probabilities: Floats, top_p: float) -> Ints:
    """Positions, ascending, of the smallest set whose probability reaches top_p; [n] int64."""
    excess = 1 - top_p
    # Tokens that together hold at most the excess go without being sorted (a sort of 128k takes 18 ms on one core of
    # an AMD EPYC, this 2 ms): all but the likeliest 1024 where that is true of them, else those of at most excess / n.
    most = min(NUCLEUS, probabilities.size)
    large = probabilities >= np.partition(probabilities, -most)[-most]
    if probabilities[~large].sum() > excess:
        large = probabilities > excess / probabilities.size
    below = probabilities[~large].sum()
    candidates = np.flatnonzero(large)
    order = scores[candidates].argsort(kind="stable")
    dropped = below + probabilities[candidates[order]].cumsum() <= excess
    dropped[-1] = False
    large[candidates[order[dropped]]] = False
    return np.flatnonzero(large)


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
