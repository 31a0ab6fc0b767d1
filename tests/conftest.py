"""Fixtures of every test: the kernels that run, and PyTorch's thread count."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from triton_backend import CHECKED_ON_THE_CPU_ALONE, gpu_backends, running

from prosparse.kernels import cpu, quant, rms_norm
from prosparse.kernels.add_scaled import add_scaled_reference
from prosparse.kernels.attend import attend_reference
from prosparse.kernels.axpy_active import axpy_active_reference
from prosparse.kernels.decode_layers import decode_layers_reference
from prosparse.kernels.gate_select import gate_select_reference
from prosparse.kernels.glu_active import glu_active_reference
from prosparse.kernels.glu_dense import glu_dense_reference
from prosparse.kernels.glu_exact import glu_exact_reference
from prosparse.kernels.glu_predicted import glu_predicted_reference
from prosparse.kernels.glu_values import glu_values_reference
from prosparse.kernels.linear import linear_reference
from prosparse.kernels.linear_active import linear_active_reference
from prosparse.kernels.plain_dense import plain_dense_reference
from prosparse.kernels.plain_exact import plain_exact_reference
from prosparse.kernels.plain_predicted import plain_predicted_reference
from prosparse.kernels.predict_select import predict_select_reference, sign_select_reference
from prosparse.kernels.rotary_store import rotary_store_reference

REFERENCES = {
    "linear": linear_reference,
    "linear_active": linear_active_reference,
    "attend": attend_reference,
    "rms_norm": rms_norm.rms_norm_reference,
    "rms_norm_to": rms_norm._into,
    "add_scaled": add_scaled_reference,
    "glu_values": glu_values_reference,
    "rotary_store": rotary_store_reference,
    "decode_layers": decode_layers_reference,
    "gate_select": gate_select_reference,
    "glu_active": glu_active_reference,
    "glu_exact": glu_exact_reference,
    "glu_dense": glu_dense_reference,
    "glu_predicted": glu_predicted_reference,
    "predict_select": predict_select_reference,
    "sign_select": sign_select_reference,
    "axpy_active": axpy_active_reference,
    "plain_exact": plain_exact_reference,
    "plain_dense": plain_dense_reference,
    "plain_predicted": plain_predicted_reference,
    "quantize": quant.quantize_reference,
    "dequantize": quant._dequantize_into,
}


def compiled_backends() -> list[str]:
    """One name per instruction set that this machine runs; none without the extension."""
    if not cpu.available():
        return []
    in_use = cpu.isa()
    found = [f"cpu-{isa}" for isa in cpu.ISAS if cpu.cap_isa(isa) == isa]
    cpu.cap_isa(in_use)
    return found


# Where Triton is not installed (macOS), the folder tests/triton would be taken for it.
if (found_triton := find_spec("triton")) is not None and found_triton.origin is None:
    sys.modules["triton"] = None  # type: ignore[assignment]

# A GPU machine may have no more than pytest beside what running needs.
collect_ignore = [] if find_spec("hypothesis") else [
    str(path) for path in Path(__file__).parent.rglob("test_*.py") if "hypothesis import" in path.read_text()
]  # fmt: skip
COMPILED = compiled_backends()
torch.set_num_threads(1)  # inputs are tiny, and a pool of threads waits for its slowest core; `threads` tests use more


def pytest_report_header() -> list[str]:
    return [f"without hypothesis: {Path(path).name} is left out" for path in collect_ignore]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not promised on a GPU."""
    left_out = [item for item in items if "[cuda" in item.name and item.name.startswith(CHECKED_ON_THE_CPU_ALONE)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The command line sets up the log for a process of its own; every test finds it as an importing program would."""
    yield
    logger = logging.getLogger("prosparse")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def threads() -> Iterator[None]:
    """Let the test choose PyTorch's thread count."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the C++ extension in turn."""
    in_use = cpu.isa()
    cpu.cap_isa(request.param.removeprefix("cpu-"))
    yield request.param
    cpu.cap_isa(in_use)


@pytest.fixture(scope="module", params=["reference", *COMPILED, *gpu_backends()])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each way to run an op here in turn: the reference, every instruction set of the extension, Triton's kernels."""
    if request.param in ("triton", "cuda"):
        with running(request.param):
            yield request.param
        return
    if request.param != "reference":
        in_use = cpu.isa()
        cpu.cap_isa(request.param.removeprefix("cpu-"))
        yield request.param
        cpu.cap_isa(in_use)
        return
    override = torch.library.Library("prosparse", "IMPL")
    for name, reference in REFERENCES.items():
        override.impl(name, reference, "CPU", allow_override=True)
    yield request.param
    override._destroy()  # the C++ kernels come back
