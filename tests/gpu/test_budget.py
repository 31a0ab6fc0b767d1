"""A budget on a GPU: what PyTorch reserves and the device's context stay within it, and tokens are the CPU's."""

from __future__ import annotations

import dataclasses
import gc
import os

import pytest
import torch

import prosparse
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.errors import MachineError
from prosparse.hardware import PRESETS
from prosparse.hardware.measure import gpu_memory, load_libraries
from prosparse.hf.divided import division_of
from prosparse.placement.sizes import Host, sizes_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("PROSPARSE_TEST_GPU") != "1", reason="no CUDA device here"
    ),
]
PROMPT = "The little girl looked at the"
LONG = " ".join([PROMPT] * 60)  # hundreds of tokens
ROOM = {"shared": 26 << 20, "whole": 200 << 20}  # bytes beside context and workspace


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    # PyTorch takes memory in pieces of 20 MiB, which are much beside the workspace of a model as small as this
    monkeypatch.setattr("prosparse.placement.sizes.GEMM_BYTES", 128 << 20)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def machine(context: int):
    """One on which sharing pays at the size of the packaged model."""
    return dataclasses.replace(
        PRESETS["8gb-pcie3"], context_bytes=context, gpu_bytes=gpu_memory()[0], sync_s=0.0, gpu_launch_s=0.0,
        to_gpu=1e12, to_cpu=1e12, cpu_call_s=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["exact", "predicted"])
@pytest.mark.parametrize("room", ROOM)
def test_reserved_memory_and_context_stay_within_the_budget(room, mode):
    load_libraries()
    context, before = gpu_memory()[1], torch.cuda.memory_reserved()
    expected = prosparse.load(weights="fp32", mode=mode, device="cpu", context=512)
    budget = context + ROOM[room] + sizes_of(expected.config, "fp32", "fp32", 512, mode).fixed
    engine = prosparse.load(weights="fp32", mode=mode, budget=budget, machine=machine(context), context=512)
    assert any(layer.split.hot < engine.config.neurons for layer in engine.plan.layers) == (room == "shared")
    for prompt in (PROMPT, LONG):
        options = {"max_new_tokens": 32, "ignore_eos": True}
        assert engine.generate(prompt, **options).token_ids == expected.generate(prompt, **options).token_ids
    assert torch.cuda.max_memory_reserved() - before + context <= budget
    with pytest.raises(MachineError, match="out of GPU memory: .* pass at least --budget"), engine._told("generate"):
        torch.empty(budget, dtype=torch.uint8, device="cuda")
    held = torch.cuda.get_per_process_memory_fraction()
    del engine
    gc.collect()
    assert torch.cuda.get_per_process_memory_fraction() > held


def test_a_live_model_within_a_budget():
    model = prosparse.AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    ids = torch.randint(5, 200, (1, 40), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    load_libraries()
    context, before = gpu_memory()[1], torch.cuda.memory_reserved()
    config = prosparse.ModelConfig.from_hf(EMBEDDED_MODEL)
    budget = context + ROOM["shared"] + sizes_of(config, "fp32", "fp32", 128, "exact", None, Host(4, None)).fixed
    prosparse.accelerate(model, budget=budget, machine=machine(context), context=128)
    assert any(split.attention and split.hot < 1536 for split in (x.split for x in division_of(model).plan.layers))
    assert torch.equal(model.generate(ids.to(model.device), **options).cpu(), expected)
    assert torch.cuda.max_memory_reserved() - before + context <= budget
    prosparse.restore(model)
    assert torch.equal(model.generate(ids, **options), expected)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
