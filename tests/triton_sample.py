"""A pytest plugin (-p triton_sample): the tests of the Triton backend, thinned out.

The interpreter is slow, and on a GPU nearly every test compiles kernels of its own. Of every test function it keeps a
few parameter sets, spread evenly: SAMPLE of them, 4 unless said. SAMPLE=all keeps all: six minutes interpreted.
"""

from __future__ import annotations

import os

import pytest
from triton_backend import CHECKED_ON_THE_CPU_ALONE

SAMPLE = os.environ.get("SAMPLE", "4")  # parameter sets of a test function
SKIPPED = (
    *CHECKED_ON_THE_CPU_ALONE,
    "test_opcheck",
)  # opcheck sees schemas and shapes, which are those of every backend


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    by_function: dict[str, list[pytest.Item]] = {}
    for item in items:
        name, _, parameters = item.nodeid.partition("[")
        own = "tests/triton/" in name
        if (own or parameters.startswith(("triton", "cuda"))) and not name.endswith(SKIPPED):
            by_function.setdefault(name, []).append(item)
    kept = []
    for same in by_function.values():
        count = len(same) if SAMPLE == "all" else min(int(SAMPLE), len(same))
        kept += [same[(2 * i + 1) * len(same) // (2 * count)] for i in range(count)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
