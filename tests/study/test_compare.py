"""Divergence and intervals against their definitions."""

from __future__ import annotations

import pytest
import torch

from prosparse.study.compare import BLOCK, bootstrap, kl_divergence, losses


def test_divergence_is_the_definition() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 50, generator=rng, dtype=torch.float64) for _ in range(2))
    p, q = a.softmax(1), b.softmax(1)
    assert torch.allclose(kl_divergence(a, b), (p * (p / q).log()).sum(1))
    assert torch.equal(kl_divergence(a, a + 3.0) < 1e-12, torch.ones(7, dtype=torch.bool))
    assert torch.allclose(losses(a, torch.arange(7)), -p[torch.arange(7), torch.arange(7)].log())


def test_what_the_baseline_rules_out_weighs_nothing() -> None:
    baseline = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    assert float(kl_divergence(baseline, torch.zeros(1, 3, dtype=torch.float64))) == pytest.approx(
        torch.tensor(1.5).log().item()
    )


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Means of blocks with a common part: an interval over single values would miss far more often."""
    rng = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(60):
        shared = torch.randn(1, 24, 1, generator=rng, dtype=torch.float64)
        own = torch.randn(1, 24, BLOCK, generator=rng, dtype=torch.float64)
        found = bootstrap((shared + own).view(1, -1))
        assert found.low is not None and found.high is not None and found.low <= found.value <= found.high
        hits += found.low <= 0 <= found.high
    assert 50 <= hits <= 60


def test_blocks_keep_what_does_not_divide() -> None:
    values = torch.arange(12 * (2 * BLOCK + 5), dtype=torch.float64).view(12, -1)
    found = bootstrap(values)
    assert found.value == pytest.approx(float(values.mean())) and found.low is not None
    assert bootstrap(values[:4]).low is None
