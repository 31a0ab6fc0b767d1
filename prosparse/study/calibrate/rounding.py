"""Rounding that makes up for its own error, where it is known what a matrix will be multiplied with.

Let M be the mean of x x^T over the inputs x of y = W x. A row of W that is off by e makes y off by e M e^T, squared and
in the mean. Rounding to nearest takes M for the identity. Here it is factored,

    M = T D T^T                        T upper triangular with ones on its diagonal, D diagonal
    e M e^T = sum over columns i of D_i (e T)_i^2
    (e T)_i = target_i - rounded_i     target_i = w_i + sum over j < i of e_j T_ji

so column after column is rounded, not its own weight but that and what the columns before leave to be made up for. That
is GPTQ (Frantar et al., 2023), whose coefficients come from the inverse of M instead; D_i is what an error in column i
costs once later columns have made up for it, and so weighs the search for an int4 scale.

Groups run along hidden. Where hidden is the input (all matrices but down), a group's scale is found when its turn
comes, and its columns are rounded with it. down is held transposed: its inputs are neurons, so a turn is a whole row,
rounded as any other row is; and turns may come in any order: neurons that matter most come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prosparse.kernels import quant

DAMPING = 0.01  # of the mean of M's diagonal, added to it: 0.003 to 0.05 give the same divergence within 5 %
# For a table that is embedding and lm_head: what is looked up in it should be near itself as well. 0.01 to 1 give the
# same divergence within 2 %, but with 0.3 the table's own squared error is a fifth lower than with 0.01.
TIED_DAMPING = 0.3
BLOCK = 64  # turns of down between two products with all errors before
ROWS = 8192  # rounded at a time where rows do not depend on each other, so that an lm_head takes no more than a layer


@dataclass(frozen=True, eq=False)
class Factors:
    """M = feed diag(cost) feed^T, up to a factor: the mean of M's diagonal is 1.

    Args:
        feed: [n, n] float32, upper triangular with ones on its diagonal.
        cost: [n] float32, positive.
    """

    feed: Tensor
    cost: Tensor

    @classmethod
    def of(cls, moments: Tensor, damping: float = DAMPING) -> Factors:
        """Factor a matrix of second moments, [n, n], symmetric and not negative.

        An input that was never seen gets the damping alone: it is rounded to nearest.
        """
        damped = moments.double()
        mean = float(damped.diagonal().mean())
        if mean > 0:
            damped /= mean
        damped.diagonal().add_(damping)
        # the lower factor of the matrix with its order turned round is the upper one, turned round
        upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
        root = upper.diagonal()
        return cls((upper / root).float(), root.square().float())


def round_columns(matrix: Tensor, factors: Factors, fmt: str) -> Tensor:
    """Round a matrix whose columns are inputs.

    Args:
        matrix: [rows, n], any float dtype.
        factors: of its inputs.
        fmt: "int8" or "int4".

    Returns:
        packed rows, [rows, row_bytes].
    """
    out = quant.empty(fmt, *matrix.shape)
    for start in range(0, len(matrix), ROWS):
        part = slice(start, start + ROWS)
        _round_columns(matrix[part].float(), factors, fmt, out[part])
    return out


def _round_columns(matrix: Tensor, factors: Factors, fmt: str, out: Tensor) -> None:
    rows, n = matrix.shape
    size, count = quant.GROUP[fmt], quant.groups(fmt, n)
    codes = torch.zeros(rows, count, size)
    scales = torch.empty(rows, count, dtype=torch.bfloat16)
    errors = torch.empty_like(matrix)
    for group in range(count):
        start, end = group * size, min(n, (group + 1) * size)
        targets, cost = torch.zeros(rows, 1, size), torch.zeros(size)
        target = targets[:, 0, : end - start]
        torch.addmm(matrix[:, start:end], errors[:, :start], factors.feed[:start, start:end], out=target)
        cost[: end - start] = factors.cost[start:end]
        scales[:, group] = quant.find_scale(targets, fmt, cost)[:, 0]
        scale, inverse = scales[:, group].float(), quant.inverse_of(targets, scales[:, group, None])[:, 0, 0]
        for i in range(start, end):
            column = target[:, i - start].addmv(errors[:, start:i], factors.feed[start:i, i])
            code = (column * inverse).round_().clamp_(*quant.RANGE[fmt])
            codes[:, group, i - start] = code
            errors[:, i] = matrix[:, i] - code * scale
    quant.pack(codes, scales, out)


def round_rows(matrix: Tensor, factors: Factors, order: Tensor, fmt: str) -> Tensor:
    """Round a matrix whose rows are inputs, as those of down are.

    Args:
        matrix: [n, columns], any float dtype.
        factors: of its inputs in `order`.
        order: the rows by their turns, [n] int64.
        fmt: "int8" or "int4".

    Returns:
        packed rows, [n, row_bytes], in the order of the matrix.
    """
    n, columns = matrix.shape
    turns = matrix[order].float()
    packed, errors = quant.empty(fmt, n, columns), torch.empty_like(turns)
    for start in range(0, n, BLOCK):
        end = min(n, start + BLOCK)
        targets = torch.addmm(turns[start:end], factors.feed[:start, start:end].T, errors[:start])
        for i in range(start, end):
            row = targets[i - start].addmv(errors[start:i].T, factors.feed[start:i, i])
            quant.quantize(row[None], fmt, out=packed[i : i + 1])
            errors[i] = turns[i] - quant.dequantize(packed[i : i + 1], columns)[0]
    out = torch.empty_like(packed)
    out[order] = packed
    return out
