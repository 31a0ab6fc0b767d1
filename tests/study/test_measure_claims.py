"""What measuring promises of any engine: packed formats, synthetic models, time and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from watched_memory import anonymous_bytes

import prosparse
from prosparse.bench.clock import interleave, speedup
from prosparse.config.shapes import shape
from prosparse.engine import load
from prosparse.study import HELD_OUT, measure, perplexity
from prosparse.study.knobs import LENGTH, SEQUENCES, TEXT_SEED, measure_knobs
from prosparse.study.measure.collect import Collector
from prosparse.study.measure.counts import Counts
from prosparse.study.measure.engine_subject import EngineSubject
from prosparse.study.measure.stream import text_windows
from prosparse.study.windows import cut, read_text
from prosparse.weights.synthetic import settle, walk, write_synthetic

SMALL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_a_prefill_shows_what_decode_skips(weights: str) -> None:
    """Counted over prefilled windows, and by the kernels that decode the same tokens one by one."""
    engine, baseline = load(SMALL, "exact", weights), load(SMALL, "dense", "fp32")
    decoded = perplexity(engine, baseline, window=64, predictions=512).activation_sparsity
    windows = cut(read_text(None), engine.tokenizer, 64, 512).inputs
    measured = prosparse.measure(engine, [windows]).document
    assert measured["model"]["weights"] == weights and decoded is not None
    # a GEMM rounds gates to bf16, which moves some of them over the threshold
    bound = 1e-5 if weights == "fp32" else 2e-3
    found = [layer["activation_sparsity"] for layer in measured["layers"]]
    assert found == pytest.approx(decoded["layers"], abs=bound)


def test_a_synthetic_model_has_what_synth_reported(tmp_path: Path) -> None:
    """On the very tokens that `prosparse synth` checks its work with."""
    small = dataclasses.replace(
        shape("minicpm-s-1b"), hidden=96, neurons=256, heads=6, kv_heads=2, head_dim=16, layers=2
    )
    config, knobs = write_synthetic("minicpm-s-1b", dataclasses.replace(small, vocab=512), tmp_path / "m", 0.8, "bf16")
    engine = load(tmp_path / "m", "dense")
    reported = measure_knobs(engine, settle(config, knobs))
    windows = [walk(config.vocab, LENGTH, TEXT_SEED + number) for number in range(SEQUENCES)]
    document = measure(engine, [torch.stack(windows)]).document
    assert round(document["mean"]["activation_sparsity"], 4) == reported["activation_sparsity"]
    assert document["text"]["tokens"] == SEQUENCES * LENGTH
    assert document["mean"]["activation_sparsity"] == pytest.approx(0.8, abs=0.03)


def test_counting_costs_little_beside_reading() -> None:
    """At most 15 % over the plain forward pass, window by window in turns; noise can only fail an attempt."""
    engine = load()
    subject = EngineSubject(engine)
    windows = list(text_windows(HELD_OUT, engine.tokenizer, 128))[:16]
    collector = Collector(Counts.zeros(engine.config.layers, engine.config.neurons, 128), 0.01)

    def counted(number: int) -> None:
        subject.read(windows[number % 16][None], collector.view)
        collector.finish()

    calls = {"counted": counted, "plain": lambda number: subject.read(windows[number % 16][None])}
    costs = []
    for _ in range(4):
        timings = interleave(calls, 16)
        costs.append(speedup(timings["counted"], timings["plain"]).value)
        if costs[-1] < 1.15:
            break
    assert min(costs) < 1.15, costs


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_tokens() -> None:
    """Of the process, model and counts included; which neurons were active would alone be 5 MB of bits."""
    engine = load(SMALL)
    rng, seen = torch.Generator().manual_seed(0), []

    def batches() -> Iterator[Tensor]:
        for _ in range(40):
            seen.append(anonymous_bytes())
            yield torch.randint(3, engine.config.vocab, (4, 128), generator=rng)

    prosparse.measure(engine, batches())
    assert max(seen[20:]) - max(seen[5:15]) < 2 << 20
