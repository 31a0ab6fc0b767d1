"""The op tests with the Triton kernels and their launchers in Triton's interpreter, in processes of their own.

TRITON_INTERPRET is read when kernels are decorated, so one process runs either the interpreter or the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "sample"),
    [
        ("gate_select glu_dense rms_norm rotary_store attend", 4),
        ("glu_exact glu_active linear", 4),
        ("glu_predicted predict_select plain plain_predicted axpy_active", 2),  # of kernels that the others run as well
    ],
    ids=["gate", "glu", "guessed and plain"],
)
def test_ops_in_the_interpreter(tests, sample):
    files = [f"tests/ops/test_{name}.py" for name in tests.split()]
    launchers = {  # tests without an op
        "attend": ("replay", "step", "engine_step"),
        "linear": ("gpu_parts",),
        "plain": ("argmax", "ffn_23", "overlap"),
    }
    files += [f"tests/triton/test_{name}.py" for op in launchers if op in tests.split() for name in launchers[op]]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "SAMPLE": str(sample)}
    options = ["-q", "-p", "triton_sample", "-p", "no:cacheprovider", "--disable-warnings"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout, result.stdout[-500:]
