"""Weights dealt out to two devices: every row in its place, and no more memory than the rows take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny

from prosparse.config import ModelConfig
from prosparse.kernels.weight import FORMATS
from prosparse.weights import Checkpoint, load_weights
from prosparse.weights.divide import Cut, Division
from prosparse.weights.formats import Formats
from prosparse.weights.memory import SLACK
from prosparse.weights.names import expected_shapes
from prosparse.weights.tables import names_of

CPU, META = torch.device("cpu"), torch.device("meta")
N = 600  # neurons: more than two blocks of rows


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("m") / "m", neurons=N, layers=3, tied=request.param, dtype=torch.float32)


def division(fast: torch.device, head: bool = True) -> Division:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    cuts = (Cut(0, 0, False, None), Cut(300, 11, True, order), Cut(N, N, True, None))
    return Division(fast, CPU, cuts, head)


@pytest.mark.parametrize("layout", ["rows", "bundled"])
@pytest.mark.parametrize("weights", FORMATS)
def test_both_parts_together_are_the_rows_in_order(folder: Path, weights: str, layout: str) -> None:
    config, dealt = ModelConfig.from_hf(folder), division(CPU)
    whole, parts = (
        load_weights(Checkpoint(folder), config, weights, layouts=[layout] * 3, division=how) for how in (None, dealt)
    )
    order = dealt.layers[1].order
    assert order is not None and parts.nbytes == whole.nbytes
    for number, (before, after) in enumerate(zip(whole.layers, parts.layers, strict=True)):
        assert (after.cold is None) == (number != 1)
        for name in ("gate", "up", "down", "qkv", "o"):
            expected, found = getattr(before, name).codes, getattr(after, name).codes
            if after.cold is not None and name in ("gate", "up", "down"):
                expected, found = expected[order], torch.cat([found, getattr(after.cold, name).codes])
                assert getattr(after.cold, name).codes.stride(0) == getattr(before, name).codes.stride(0)
            assert torch.equal(found, expected), name
    assert torch.equal(parts.lm_head.codes, whole.lm_head.codes)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("weights", FORMATS)
def test_another_device_gets_one_block_of_just_its_rows(folder: Path, weights: str, head: bool) -> None:
    """The meta device holds shapes alone, so nothing is copied to it, and all is counted."""
    config, dealt = ModelConfig.from_hf(folder), division(META, head)
    found = load_weights(Checkpoint(folder), config, weights, division=dealt)
    first, shared, last = found.layers
    assert shared.cold is not None and shared.up is not None and first.up is not None and last.up is not None
    fast = [shared.qkv, shared.o, shared.gate, shared.up, shared.down]
    fast += [last.qkv, last.o, last.gate, last.up, last.down]
    slow = [first.qkv, first.o, first.gate, first.up, first.down, shared.cold.gate, shared.cold.up, shared.cold.down]
    (fast if head else slow).append(found.lm_head)
    if not config.tied_embeddings:
        slow.append(found.embed)
    for weights_there, device in ((fast, META), (slow, CPU)):
        assert {weight.codes.device for weight in weights_there} == {device}
    on_fast, on_slow = dealt.nbytes(
        names_of(config), expected_shapes(config), Formats(weights, weights), config.tied_embeddings
    )
    assert sum(weight.nbytes for weight in fast) == on_fast and sum(weight.nbytes for weight in slow) == on_slow
    assert {weight.codes.untyped_storage().nbytes() for weight in fast} == {on_fast + SLACK}
    assert (first.ffn_norm.device, shared.ffn_norm.device) == (CPU, META)
