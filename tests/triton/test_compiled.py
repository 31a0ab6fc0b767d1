"""The kernels compiled ahead of time, and what a bad one would be told. tools/compile_triton.py has more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

from aot.checks import in_flight, per_weight, problems, programs_per_sm  # noqa: E402
from aot.cubin import Resources, compile_launch  # noqa: E402
from aot.launches import launches, recorded  # noqa: E402
from aot.targets import TARGETS, Case, launches_of  # noqa: E402

from prosparse.kernels.activation import Activation  # noqa: E402
from prosparse.kernels.tally import new_tally  # noqa: E402
from prosparse.kernels.triton import attend_step, glu_dense, linear  # noqa: E402

needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter has no launches to record"
)
CASE = Case("linear", "7B", "bf16", 1)
GOOD = Resources(
    registers=48, stack=0, spills=0, repeated_spills=0, shared=32768, copies={16: 12}, loads={16: 4, 4: 1},
    repeated=200, ordered=None,
)  # fmt: skip


def launch_of(case, capability=90):
    return next(iter(launches_of(case, TARGETS[capability].gpu)))


@pytest.mark.slow
def test_kernels_compile_without_spills_and_with_wide_loads(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "tools/compile_triton.py", "--quick", "sm_80", "sm_90"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert "27 kernels, 0 with problems" in result.stdout


@needs_compiler
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"spills": 2}, None),
        ({"spills": 5}, "5 instructions spill registers"),
        ({"spills": 2, "repeated_spills": 1}, "2 instructions spill registers, 1 of them in loops"),
        ({"ordered": False}, "a ticket is taken before the stores"),
        ({"copies": {4: 12}, "loads": {4: 40}}, "not read 16 bytes at a time"),
        ({"loads": {16: 4, 2: 8}}, "8 loads of less than 4 bytes"),
        ({"shared": 300_000}, "do not fit"),
        ({"shared": 120_000}, "264 programs do not run at once"),
    ],
)
def test_a_bad_kernel_is_told(change, said):
    wrong = problems(CASE, launch_of(CASE), replace(GOOD, **change), TARGETS[90])
    assert wrong == [] if said is None else any(said in problem for problem in wrong), wrong


@needs_compiler
def test_what_triton_or_a_gpu_refuses_at_launch_is_told():
    with recorded(TARGETS[90].gpu), pytest.raises(TypeError, match="linear_kernel and this Triton know no launch_late"):
        linear.linear_kernel[(1,)](num_warps=4, launch_late=True)
    tall = replace(launch_of(CASE), grid=(1, 65536))
    assert any("is refused" in problem for problem in problems(CASE, tall, GOOD, TARGETS[90]))


@needs_compiler
@pytest.mark.parametrize(("waits", "said"), [(True, False), (False, True), (None, True)])
def test_a_kernel_that_may_overlap_waits_before_it_touches_memory(waits, said):
    case = Case("overlap", "7B", "bf16", 1)
    assert not list(launches_of(case, TARGETS[89].gpu)), "older GPUs have no such launches"
    launch = launch_of(case)
    wrong = problems(case, launch, replace(GOOD, waits=waits), TARGETS[90])
    assert any("before the launch before it is over" in problem for problem in wrong) == said
    assert problems(CASE, launch_of(CASE), GOOD, TARGETS[90]) == []


@needs_compiler
def test_what_is_in_flight():
    launch = launch_of(CASE)
    assert (launch.programs, launch.values["BLOCK_N"], launch.values["STAGES"]) == (264, 2, 3)
    assert programs_per_sm(launch, GOOD, TARGETS[90]) == 2  # there are no more
    assert in_flight(launch, GOOD, TARGETS[90]) == 2 * 2 * 2 * 8192
    assert programs_per_sm(launch, replace(GOOD, registers=200), TARGETS[90]) == 1
    assert per_weight(launch, GOOD) == 200 * 256 / (2 * 4096)
    assert TARGETS[90].needed_in_flight == pytest.approx(3350e9 * 0.75e-6 / 132)


@needs_compiler
def test_a_row_that_starts_off_a_unit_is_read_by_elements():
    """Triton trusts a distance given in units to be aligned; one that is not must not be given so."""
    x = torch.empty(1, 96, device="meta")
    for width, step in ((96, 8), (99, 1)):
        weight = torch.empty(64, width, dtype=torch.bfloat16, device="meta")[:, :96]
        (launch,) = launches(TARGETS[90].gpu, linear.launch, x, weight)
        assert (launch.values["STEP"], launch.values["distance"]) == (step, width // step)


def empty(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


@needs_compiler
@pytest.mark.parametrize("what", ["rows of 5120 in fp32", "heads of 256"])
def test_long_rows_and_heads_fit_where_shared_memory_is_small(what, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = TARGETS[89]
    if what == "heads of 256":
        cache, angles, place = empty(1, 8, 512, 256, dtype=torch.bfloat16), empty(512, 128), empty(1, dtype=torch.int32)
        given = empty(1, 24 * 256), None, angles, angles, cache, cache, place, place, 0, place
        launch = launches(target.gpu, attend_step.launch, *given)[0]
    else:
        weights, silu = (empty(64, 5120) for _ in range(3)), Activation("silu").code
        launch = launches(target.gpu, glu_dense.launch, empty(1, 5120), *weights, silu, 0.0, False, new_tally("meta"))[
            0
        ]
    assert programs_per_sm(launch, compile_launch(launch, 89), target) >= 1
