"""The prefill and quality subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse.bench import prefill
from prosparse.bench.prefill import compare_prefill, gemms, layer_bytes
from prosparse.bench.quality import compare_quality
from prosparse.bench.row import KEYS
from prosparse.bench.table import render
from prosparse.config.shapes import shape
from prosparse.engine import load
from prosparse.errors import MachineError, UserError
from prosparse.sparsity import ffn
from prosparse.study import perplexity

MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"
pytestmark = pytest.mark.usefixtures("small_probe")


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_prompts_against_gemms(weights):
    rows = compare_prefill("tiny", (8, 40), weights, rounds=10)
    assert [(row["part"], row["mode"]) for row in rows] == [
        (p, m) for p in ("pp8", "pp40") for m in ("dense", "pytorch")
    ]
    for row in rows:
        assert tuple(row) == KEYS and row["baseline"] == prefill.GEMMS
        assert row["context"] == int(row["part"][2:]) and row["note"] is None
    ours, theirs = rows[2:]
    assert theirs["dense_ratio"] == 1 and theirs["weights"] == "bf16" and ours["weights"] == weights
    assert ours["tokens_per_s"] == pytest.approx(40e6 / ours["median_us"], rel=1e-3)
    assert ours["run"] == theirs["run"] != rows[0]["run"]


def test_bytes_and_work_of_the_layers():
    config = shape("tiny")
    attended = config.heads * config.head_dim
    qkv = attended + 2 * config.kv_heads * config.head_dim
    weights = config.layers * (qkv * config.hidden + attended * config.hidden + 3 * config.neurons * config.hidden)
    assert layer_bytes(config, "bf16") == 2 * weights
    assert gemms(config, 5)(0).shape == (5, config.hidden)
    part = compare_prefill("tiny", (8,), layers=1, rounds=10)
    assert part[0]["note"] == "1 of 2 layers" and part[0]["tokens_per_s"] is None
    assert 2 * part[0]["bytes"] == layer_bytes(config, "bf16")


def test_refuses_a_prefill_that_decode_contradicts(monkeypatch):
    real = ffn.gemm_transposed
    monkeypatch.setattr(ffn, "gemm_transposed", lambda *arguments: real(*arguments) * 3)
    with pytest.raises(MachineError, match="prefill is wrong"):
        compare_prefill("tiny", (8,))


def test_prompts_that_do_not_fit():
    with pytest.raises(UserError, match="from 2 to 256 tokens long, got 257"):
        compare_prefill("tiny", (8, 257))


def test_quality_is_what_perplexity_says():
    dense, exact = compare_quality(MODEL, [("int4", "int8")], predictions=600)
    assert (dense["mode"], exact["mode"]) == ("dense", "exact") and dense["quality"] == exact["quality"]
    assert tuple(exact) == KEYS and exact["part"] == "lm_head int8" and exact["weights"] == "int4"
    engine, baseline = load(MODEL, weights="int4", lm_head="int8"), load(MODEL, "dense", "fp32")
    found = perplexity(engine, baseline, predictions=600)
    assert exact["model"] == MODEL.name and exact["context"] == found.window
    assert exact["quality"]["kl_divergence"][0] == pytest.approx(found.kl_divergence.value, rel=1e-5)
    assert exact["quality"]["top1_agreement"][0] == pytest.approx(found.top1_agreement.value, rel=1e-5)
    assert exact["activation_sparsity"] == found.activation_sparsity["mean"]
    assert exact["p10_us"] is None and len(render([dense, exact]).renderables) == 2
