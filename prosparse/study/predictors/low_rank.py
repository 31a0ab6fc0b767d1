"""The best guess of a gate at a given rank: a truncated SVD, weighted as the data weights it.

Let x have mean m and covariance C = L L^T, and W L = U S V^T. Among all maps of rank r the one with the least mean
squared error of the gate W x is W m + U_r U_r^T W (x - m): U_r holds the r leading columns of U. U S and V come from
the eigenvectors of L^T W^T W L, [hidden, hidden], so nothing of the size of neurons squared is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prosparse.kernels.weight import FORMATS, Weight, in_format

from ...errors import UserError
from ...weights.predictor import LayerPredictor

RANKS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# int8 and int4 cost half a point of predicted sparsity at most against fp32, at a third of bf16's bytes: by hand on
# relu-llama-14m, ranks 32 and 64, recall 0.98 and 0.99.
FIRST, SECOND = "int8", "int4"
RIDGE = 1e-6  # of the mean variance: x may lie in a subspace


class Moments:
    """Mean and covariance of the inputs shown so far, [tokens, hidden] each time."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum = self._products = torch.zeros(())

    def add(self, x: Tensor) -> None:
        self.tokens += len(x)
        self._sum = self._sum + x.double().sum(0)
        self._products = self._products + (x.t() @ x).double()

    def factor(self) -> Tensor:
        """L, lower triangular, [hidden, hidden] float64."""
        mean = self._sum / self.tokens
        covariance = self._products / self.tokens - torch.outer(mean, mean)
        ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
        values, vectors = torch.linalg.eigh(covariance)
        covariance = (vectors * values.clamp_min(0)) @ vectors.t()  # rounding may leave it a little below 0
        covariance.diagonal().add_(ridge)
        return torch.linalg.cholesky(covariance)


def parts(gate: Weight, moments: Moments, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the guess: first [rank, hidden] and second [neurons, rank] float32, in descending order of energy."""
    weight, lower = gate.values().double(), moments.factor()
    seen = weight @ lower
    values, vectors = torch.linalg.eigh(seen.t() @ seen)
    leading = values.flip(0)[:rank] > 1e-12 * values[-1].clamp_min(1e-30)
    second = seen @ vectors.flip(1)[:, :rank][:, leading]
    second = second / second.norm(dim=0)
    return (second.t() @ weight).float(), second.float()


def guesses(
    first: Tensor, second: Tensor, ranks: Sequence[int], fmt: str = "auto", relu: bool = False, un_normed: bool = False
) -> Iterator[LayerPredictor]:
    """Predictors of some ranks, from factors of the largest of them; without offsets."""
    check_format(fmt)
    offset = torch.zeros(second.shape[0], device="cpu")
    for rank in ranks:
        ends = in_format(first[:rank].contiguous(), FIRST if fmt == "auto" else fmt)
        begins = in_format(second[:, :rank].contiguous(), SECOND if fmt == "auto" else fmt)
        yield LayerPredictor("low_rank", offset, ends, begins, relu=relu, un_normed=un_normed)


def check_format(fmt: str) -> None:
    """Raise UserError unless the format is one that matrices can be stored in, or "auto"."""
    if fmt not in ("auto", *FORMATS):
        raise UserError(f"predictor: weights is {fmt!r}; supported are auto, {', '.join(FORMATS)}")


def ranks_to_try(rank: int | str, hidden: int, neurons: int) -> tuple[int, ...]:
    """The rank asked for, or with "auto" those whose matrices have fewer numbers than the gate.

    Raises:
        UserError: neither "auto" nor from 1 to the sizes of the gate.
    """
    if rank == "auto":
        most = hidden * neurons // (hidden + neurons)
        return tuple(own for own in RANKS if own <= most) or (max(1, most),)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(hidden, neurons):
        raise UserError(f"predictor: rank must be auto or from 1 to {min(hidden, neurons)}, got {rank!r}")
    return (rank,)
