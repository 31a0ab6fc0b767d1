"""What PyTorch is told it may take of a GPU, with a stand-in for its memory."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from fake_cuda import GIB, FakeCuda
from placed_plans import placed, some_profile
from tiny_engine import make_model

import prosparse
from prosparse.engine.divided import check_room
from prosparse.engine.memory_limit import Grant, grant
from prosparse.errors import MachineError

CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda().install(monkeypatch)


def test_reserved_and_context_stay_within_the_budget(cuda: FakeCuda) -> None:
    held = grant(4 * GIB, CUDA)
    assert held is not None and cuda.allowed + cuda.context == pytest.approx(4 * GIB)
    cuda.reserved = GIB
    assert held.left == pytest.approx(4 * GIB - GIB - cuda.context, abs=1)
    held.release()
    held.release()
    assert cuda.fraction == 1.0
    assert grant(4 * GIB, torch.device("cpu")) is None, "nobody limits the CPU's memory"


def test_several_models_and_what_was_there_before(cuda: FakeCuda) -> None:
    """The limit is the process's: budgets add up, the context is taken off each of them."""
    cuda.reserved, cuda.fraction = GIB, 0.9
    first = Grant(2 * GIB, CUDA)
    assert cuda.allowed == pytest.approx(GIB + 1.5 * GIB)
    second = Grant(3 * GIB, CUDA)
    assert cuda.allowed == pytest.approx(GIB + 1.5 * GIB + 2.5 * GIB)
    first.release()
    assert cuda.allowed == pytest.approx(GIB + 2.5 * GIB)
    del second
    gc.collect()
    assert cuda.fraction == 0.9, "a model that is gone is held to nothing"


def test_a_limit_that_was_lower_is_kept(cuda: FakeCuda) -> None:
    cuda.fraction = 0.25
    held = Grant(6 * GIB, CUDA)
    assert cuda.fraction == 0.25 and held.left == 2 * GIB
    held.release()
    assert cuda.fraction == 0.25


def test_a_budget_that_the_context_eats(cuda: FakeCuda) -> None:
    held = Grant(GIB // 4, CUDA)
    assert cuda.fraction == 0.0 and held.left == 0
    held.release()


def test_the_room_is_what_is_free_and_within_the_budget(cuda: FakeCuda, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        engine = prosparse.load(make_model(tmp_path / "m"), weights="fp32")
    plan = placed(engine, some_profile(engine), [(40, 10), (0, 0, False)])
    roomy, tight = Grant(4 * GIB, CUDA), Grant(0, CUDA)
    tight.budget = cuda.context + (1 << 20)
    check_room(plan, engine.config, 64, None, CUDA, roomy)
    roomy.release()
    with pytest.raises(
        MachineError, match="a budget of 0.50 GiB leaves 0.0 MiB beside a context of 0.50 GiB; make a plan for a higher"
    ):
        check_room(plan, engine.config, 64, None, CUDA, tight)
    cuda.others = cuda.free - (1 << 20)
    with pytest.raises(MachineError, match="takes .* of the GPU, but 1.0 MiB are free now; close other programs"):
        check_room(plan, engine.config, 64, None, CUDA, tight)
    tight.release()
