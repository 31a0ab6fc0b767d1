"""How close is close enough, derived once and used by every kernel test.

A kernel sums in fp32, in an order of its own. Each step of a sum of n products rounds the partial sum (and, without
FMA, the product) by at most eps / 2, relative; rounding errors behave like independent noise, so n of them add up to
about sqrt(n), and with lambda = 8 the bound

    |computed - a . b|  <=  lambda * sqrt(n) * (eps / 2) * sum |a_i b_i|

fails with a probability below 1e-13 per sum (Higham and Mary, "A new approach to probabilistic rounding error
analysis", 2019, theorem 2.4). It still sees one wrong term: at n = 1536 it is 2e-5 of sum |a_i b_i|, of which a term
is about 7e-4.

`Bounded` carries a float64 value and such a bound through an FFN: through act and product by their derivatives,
through the next sum by the triangle inequality. What the output dtype rounds is added at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
LAMBDA = 8.0


@dataclass(frozen=True, eq=False)
class Bounded:
    """A float64 value, and how far from it an fp32 computation may be. Same shapes."""

    value: Tensor
    error: Tensor

    @classmethod
    def exact(cls, tensor: Tensor) -> Bounded:
        value = tensor.double()
        return cls(value, torch.zeros_like(value))

    @classmethod
    def fixed_point(cls, tensor: Tensor, group: int) -> Bounded:
        """[tokens, columns] in 16-bit fixed point, one scale for `group` columns: what packed rows are multiplied with.

        With L the largest magnitude of the group, the scale is s = fl(L / 32767), and q = round(fl(x * fl(1 / s)))
        stands for x as q * s. Rounding to a whole number moves q by at most 1/2, each of the two fl before it by at
        most EPS / 2 of x / s, and s is at most (1 + EPS / 2) * L / 32767:

            |q s - x|  <=  s / 2 + EPS |x|  <=  (1 + EPS) * L / 65534 + EPS |x|

        where the rest of the second EPS covers a term in EPS squared. Below L = 32767 / 3e38 the inverse of s would
        overflow, and q is 0. Products of q with codes are whole numbers that are added without rounding within a block
        of 128 columns, so there are fewer roundings than `@` allows for.
        """
        value = tensor.double()
        padded = torch.nn.functional.pad(value, (0, -value.shape[1] % group)).unflatten(1, (-1, group))
        largest = padded.abs().amax(-1, keepdim=True).expand_as(padded).flatten(1)[:, : value.shape[1]]
        error = (1 + EPS) * largest / 65534 + EPS * value.abs()
        return cls(value, torch.where(largest <= 32767 / 3e38, value.abs(), error))

    def __matmul__(self, matrix: Tensor) -> Bounded:
        """[tokens, n] @ [n, m], the matrix exact."""
        weight = matrix.double()
        size = (self.value.abs() + self.error) @ weight.abs()
        rounding = LAMBDA * math.sqrt(weight.shape[0]) * EPS / 2 * size
        return Bounded(self.value @ weight, rounding + self.error @ weight.abs())

    def plus(self, exact: Tensor) -> Bounded:
        """The sum with exact numbers, rounded once."""
        value = self.value + exact.double()
        return Bounded(value, self.error + EPS / 2 * (value.abs() + self.error))

    def __mul__(self, other: Bounded) -> Bounded:
        value = self.value * other.value
        error = self.value.abs() * other.error + self.error * (other.value.abs() + other.error)
        return Bounded(value, error + EPS * value.abs())

    def where(self, mask: Tensor) -> Bounded:
        """Exactly zero outside the mask."""
        return Bounded(self.value.where(mask, 0.0), self.error.where(mask, 0.0))

    def relu(self) -> Bounded:
        """max(0, value): continuous, with slope at most 1."""
        return Bounded(self.value.clamp(min=0), self.error)

    def silu(self) -> Bounded:
        """value * sigmoid(value): slope at most 1.1; exp and the division add a few roundings."""
        value = torch.nn.functional.silu(self.value)
        return Bounded(value, 1.1 * self.error + 8 * EPS * value.abs())


def assert_within(actual: Tensor, expected: Bounded, what: str) -> None:
    """Every element lies within its bound, after rounding to the dtype of `actual`."""
    assert actual.shape == expected.value.shape, f"{what}: shape {tuple(actual.shape)}"
    info = torch.finfo(actual.dtype)
    bound = expected.error * (1 + info.eps) + expected.value.abs() * info.eps / 2 + info.smallest_normal * info.eps
    error = (actual.double() - expected.value).abs()
    wrong = ~(error <= bound)  # a NaN is wrong as well
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are out of bounds, first at {at}: got "
            f"{float(actual[at]):.8g}, expected {float(expected.value[at]):.8g} within {float(bound[at]):.2g}"
        )
