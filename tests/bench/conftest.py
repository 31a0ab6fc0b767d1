"""A probe and random weights that take no time, for tests in which neither bandwidth nor size matters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prosparse.bench import probe
from prosparse.weights.synthetic import matrices


@pytest.fixture(scope="module")
def small_probe() -> Iterator[None]:
    """Touching half a gigabyte takes a second, and so does making 17 million random numbers a few times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "BUFFER_BYTES", 2 * probe.CALL_BYTES)
        patch.setattr(matrices, "BLOCK", 1_048_583)  # prime as well
        yield
