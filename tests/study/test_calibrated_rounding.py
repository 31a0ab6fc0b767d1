"""Rounding with error feedback against its definition, solved anew for every column in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prosparse.kernels.quant import GROUP, RANGE, dequantize, find_scale, quantize, quantize_reference
from prosparse.study.calibrate import rounding
from prosparse.study.calibrate.rounding import DAMPING, Factors, round_columns, round_rows

FMTS = ["int4", "int8"]


def correlated(n: int, seed: int, tokens: int = 300) -> Tensor:
    """Second moments of inputs that depend on each other and differ in size, [n, n] float32."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=rng) / n**0.5 + torch.eye(n)
    x = torch.randn(tokens, n, generator=rng) @ mixing * torch.rand(n, generator=rng).add(0.1)
    return x.T @ x


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def damped(moments: Tensor) -> Tensor:
    """What is minimised: float64, the mean of its diagonal 1 before the damping."""
    scaled = moments.double() / moments.diagonal().double().mean()
    return scaled + DAMPING * torch.eye(len(moments), dtype=torch.float64)


def cost_of(errors: Tensor, moments: Tensor) -> float:
    """sum of e M e^T over the rows e."""
    return float(((errors.double() @ damped(moments)) * errors.double()).sum())


def made_up(matrix: Tensor, errors: Tensor, moments: Tensor, i: int) -> tuple[Tensor, float]:
    """What column i should be, errors before it given and all later columns free, and what missing it costs.

    matrix and errors are [rows, n] float64; returns [rows].
    """
    later = damped(moments)[i:, i:]
    best = -errors[:, :i] @ damped(moments)[:i, i:] @ torch.linalg.inv(later)
    return matrix[:, i] - best[:, 0], 1 / float(torch.linalg.inv(later)[0, 0])


def by_definition(matrix: Tensor, moments: Tensor, fmt: str) -> Tensor:
    """The rounded matrix, [rows, n] float64, column by column."""
    rows, n = matrix.shape
    size = GROUP[fmt]
    result, errors = matrix.double(), torch.zeros(rows, n, dtype=torch.float64)
    for i in range(n):
        target, _ = made_up(matrix.double(), errors, moments, i)
        if i % size == 0:
            group = [made_up(matrix.double(), errors, moments, j) for j in range(i, min(n, i + size))]
            targets = torch.nn.functional.pad(torch.stack([t for t, _ in group], 1), (0, size - len(group)))
            cost = torch.tensor([c for _, c in group] + [0.0] * (size - len(group)))
            scale = find_scale(targets.float()[:, None], fmt, cost)[:, 0].double()
        result[:, i] = (target / scale).round().clamp(*RANGE[fmt]) * scale
        errors[:, i] = matrix[:, i] - result[:, i]
    return result


@pytest.mark.parametrize("n", [1, 5, 32, 40, 70])
@pytest.mark.parametrize("fmt", FMTS)
def test_columns_are_rounded_as_defined(fmt, n):
    for seed in range(3):
        matrix, moments = normal(6, n, seed), correlated(n, seed)
        found = dequantize(round_columns(matrix, Factors.of(moments), fmt), n)
        assert torch.equal(found.double(), by_definition(matrix, moments, fmt))


@pytest.mark.parametrize("n", [1, 5, 64, 70])
@pytest.mark.parametrize("fmt", FMTS)
def test_rows_are_rounded_as_defined_in_the_order_asked_for(fmt, n):
    matrix, moments = normal(n, 40), correlated(n, 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    found = dequantize(round_rows(matrix, Factors.of(moments[order][:, order]), order, fmt), 40)
    turned, turned_moments = matrix[order].T.double(), moments[order][:, order]
    errors = torch.zeros_like(turned)
    for i in range(n):
        target, _ = made_up(turned, errors, turned_moments, i)
        rounded = dequantize(quantize(target[None].float(), fmt), 40)[0]
        assert torch.equal(found[order[i]], rounded)
        errors[:, i] = turned[:, i] - rounded.double()


@pytest.mark.parametrize("fmt", FMTS)
def test_factors_multiply_out(fmt):
    moments = correlated(50, 0)
    factors = Factors.of(moments)
    feed = factors.feed.double()
    torch.testing.assert_close(feed @ factors.cost.double().diag() @ feed.T, damped(moments), rtol=1e-5, atol=1e-5)
    assert torch.equal(feed.tril(), torch.eye(50, dtype=torch.float64))
    assert float(factors.cost.min()) >= 0.99 * DAMPING


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fmt", FMTS)
def test_is_better_than_rounding_to_nearest(fmt, seed):
    """By a lot where inputs depend on each other, and never worse by more than chance where they do not."""
    n = (17, 64, 100, 160)[seed % 4]
    independent = seed >= 10
    rng = torch.Generator().manual_seed(seed)
    moments = (torch.rand(n, generator=rng) + 0.1).diag() if independent else correlated(n, seed)
    matrix = normal(30, n, seed)
    plain = cost_of(dequantize(quantize(matrix, fmt), n) - matrix, moments)
    ours = cost_of(dequantize(round_columns(matrix, Factors.of(moments), fmt), n) - matrix, moments)
    assert ours < (1.001 if independent else 0.8) * plain
    down, order = matrix.T.contiguous(), moments.diagonal().argsort(descending=True)
    codes = round_rows(down, Factors.of(moments[order][:, order]), order, fmt)
    plain = cost_of((dequantize(quantize(down, fmt), 30) - down).T, moments)
    ours = cost_of((dequantize(codes, 30) - down).T, moments)
    assert ours < (1.001 if independent else 0.8) * plain


@pytest.mark.parametrize("moments", [torch.zeros(70, 70), 3 * torch.eye(70)], ids=["never seen", "independent"])
@pytest.mark.parametrize("fmt", FMTS)
def test_is_rounding_to_nearest_where_there_is_nothing_to_make_up_for(fmt, moments):
    matrix, factors = normal(9, 70), Factors.of(moments)
    expected = torch.empty_like(quantize(matrix, fmt))
    quantize_reference(matrix, expected)
    assert torch.equal(round_columns(matrix, factors, fmt), expected)
    down = matrix.T.contiguous()
    assert torch.equal(round_rows(down, factors, torch.arange(70), fmt), quantize(down, fmt))


@pytest.mark.parametrize("fmt", FMTS)
def test_a_neuron_that_was_never_active_is_rounded_to_nearest_and_harms_no_other(fmt):
    moments = correlated(40, 0)
    moments[7], moments[:, 7] = 0, 0
    matrix, factors = normal(40, 64), Factors.of(moments)
    codes = round_rows(matrix, factors, torch.arange(40), fmt)
    assert torch.equal(codes[7:8], quantize(matrix[7:8], fmt))
    others = torch.arange(40) != 7
    matrix[7] = 100 * normal(1, 64, seed=1)[0]
    assert torch.equal(round_rows(matrix, factors, torch.arange(40), fmt)[others], codes[others])


@pytest.mark.parametrize("fmt", FMTS)
def test_rows_of_a_large_matrix_are_rounded_in_parts(fmt, monkeypatch):
    matrix, factors = normal(50, 70), Factors.of(correlated(70, 0))
    whole = round_columns(matrix.bfloat16(), factors, fmt)
    monkeypatch.setattr(rounding, "ROWS", 16)
    assert torch.equal(round_columns(matrix.bfloat16(), factors, fmt), whole)
