"""The block of memory that weights lie in."""

from __future__ import annotations

import gc
import logging
import mmap
from pathlib import Path

import pytest
import torch
from tiny_engine import make_model, some_tokens
from watched_memory import anonymous_bytes

import prosparse
from prosparse.errors import MachineError
from prosparse.weights.memory import ALIGNMENT, HUGE_PAGE, Arena

SHAPES = [((3, 5), torch.bfloat16), ((7,), torch.float32), ((1, 1), torch.float16), ((64, 100), torch.bfloat16)]


def test_tensors_are_apart_aligned_and_writable():
    arena = Arena(sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in SHAPES))
    tensors = [arena.empty(shape, dtype) for shape, dtype in SHAPES]
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % ALIGNMENT == 0 and tensor.is_contiguous()
        tensor.fill_(number)
    assert tensors[0].data_ptr() % HUGE_PAGE == 0
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, SHAPES, strict=True)):
        assert tensor.shape == shape and tensor.dtype == dtype and bool((tensor == number).all())


def resident() -> int:
    """Bytes of this process that are in memory."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_goes_with_the_last_tensor():
    size = 256 << 20
    before = resident()
    arena = Arena(size)
    kept, large = arena.empty((4,), torch.float32).fill_(1), arena.empty((size // 8,), torch.float32).fill_(2)
    assert resident() - before > size // 4
    del arena, large
    gc.collect()
    assert resident() - before > size // 4 and kept.sum() == 4  # a tensor still lies in it
    del kept
    gc.collect()
    assert resident() - before < size // 8


def test_ordinary_pages_serve_where_the_system_refuses_huge_ones(monkeypatch, caplog):
    class Refusing(mmap.mmap):
        def madvise(self, *args):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    with caplog.at_level(logging.INFO, "prosparse"):
        arena = Arena(1 << 20)
    assert [record.message for record in caplog.records] == [
        "no huge pages for the weights ([Errno 22] Invalid argument): ordinary pages serve, somewhat slower"
    ]
    assert arena.empty((3,), torch.float32).fill_(2).sum() == 6


def test_ordinary_pages_serve_where_python_knows_no_huge_ones(monkeypatch, caplog):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)  # as on macOS
    with caplog.at_level(logging.INFO, "prosparse"):
        arena = Arena(1 << 20)
    assert "ordinary pages serve" in caplog.text and arena.empty((3,), torch.float32).fill_(2).sum() == 6


def test_more_than_the_system_has_is_refused():
    with pytest.raises(MachineError, match="load: the system refuses [0-9.]+ GiB of memory"):
        Arena(2**46)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_a_loaded_model_takes_its_weights_and_its_cache(tmp_path, weights):
    """Anonymous memory while it loads and generates: at most 15 % above weights and the cache of the whole context."""
    sizes = dict(hidden=512, neurons=4096, layers=8, heads=8, kv_heads=8, head_dim=64)
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16, max_position=4096, **sizes)
    prosparse.load(folder, weights=weights, context=64).generate(some_tokens(20), max_new_tokens=2)  # loads libraries
    gc.collect()
    before = peak = anonymous_bytes()

    def watch(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    engine = prosparse.load(folder, weights=weights, progress=watch)
    engine.generate(some_tokens(1000), max_new_tokens=4, progress=watch)
    watch(0, 0)
    decoder = engine.decoder
    held = decoder.embed.nbytes + decoder.lm_head.nbytes
    for attention, ffn in decoder.blocks:
        held += sum(weight.nbytes for weight in (attention.qkv, attention.o, ffn.gate, ffn.up, ffn.down))
    cache = 8 * 2 * 8 * 64 * 4096 * 2  # layers, keys and values, heads, head_dim, positions, bytes of bf16
    assert peak - before <= 1.15 * (held + cache), f"{(peak - before) / 1e6:.0f} MB for {(held + cache) / 1e6:.0f} MB"
