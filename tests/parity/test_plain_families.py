"""OPT and Falcon beside transformers' own classes, and what holds for every format: exact has the bits of dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rows import ROWS, Row
from tiny_engine import assert_logits_close, decoded_logits, some_tokens
from tiny_families import write_falcon, write_opt
from torch import Tensor
from transformers import FalconConfig, FalconForCausalLM, OPTConfig, OPTForCausalLM

import prosparse
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity
from prosparse.errors import UserError
from prosparse.plan import LayerPlan, Plan, fingerprint

PLAIN = [row for row in ROWS if row.write in (write_opt, write_falcon)]
OPT, OPT_350M, FALCON, FALCON_NEW = PLAIN
# other members of the two families, against the formulas and against transformers
VARIANTS: dict[str, tuple[Row, dict[str, Any]]] = {
    "opt": (OPT, {}),
    "opt without final norm": (OPT, {"_remove_final_layer_norm": True}),
    "opt without biases": (OPT, {"enable_bias": False, "hidden_size": 40, "word_embed_proj_dim": 40, "ffn_dim": 77}),
    "opt-350m": (OPT_350M, {}),
    "opt-350m not projected": (OPT_350M, {"word_embed_proj_dim": 48}),
    "falcon": (FALCON, {}),
    "falcon with biases": (FALCON, {"bias": True, "ffn_hidden_size": 77}),
    "falcon with as many key heads": (FALCON, {"multi_query": False, "tie_word_embeddings": False}),
    "falcon new": (FALCON_NEW, {}),
    "falcon new, one norm": (FALCON_NEW, {"num_ln_in_parallel_attn": 1, "bias": True}),
}


def make(name: str, folder: Path) -> tuple[Row, Path]:
    row, changes = VARIANTS[name]
    changed = Row(row.model, row.config, {**row.sizes, **changes}, row.changes, row.write)
    return changed, changed.make(folder)


@torch.inference_mode()
def hf_logits(folder: Path, ids: list[int]) -> Tensor:
    """transformers in float32, eager attention."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config_class, model_class = {
        "opt": (OPTConfig, OPTForCausalLM),
        "falcon": (FalconConfig, FalconForCausalLM),
    }[config["model_type"]]
    model = model_class.from_pretrained(
        folder, config=config_class(**config, attn_implementation="eager"), dtype=torch.float32
    )
    return model.eval()(torch.tensor([ids]), use_cache=False).logits[0].float()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_formulas_and_transformers(name: str, tmp_path: Path) -> None:
    row, folder = make(name, tmp_path / "model")
    ids = some_tokens(40, seed=2)
    expected = row.expected(folder, ids)
    assert_logits_close(hf_logits(folder, ids), expected, f"{name}: transformers")
    for mode in ("dense", "exact"):
        engine = prosparse.load(folder, mode=mode, weights="fp32")
        for chunk in (512, 9):
            assert_logits_close(engine.logits(ids, chunk=chunk), expected, f"{name} {mode} prefill by {chunk}")
        assert_logits_close(decoded_logits(engine, ids, prefix=20), expected[20:], f"{name} {mode} decode after 20")


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.model)
def test_exact_has_the_bits_of_dense_and_reads_less(row: Row, weights: str, tmp_path: Path) -> None:
    folder, ids = row.make(tmp_path / "model"), some_tokens(24, seed=3)
    dense, exact = (prosparse.load(folder, mode=mode, weights=weights) for mode in ("dense", "exact"))
    assert torch.equal(decoded_logits(dense, ids), decoded_logits(exact, ids))
    first, second = (engine.generate("abc", max_new_tokens=12) for engine in (dense, exact))
    assert first.token_ids == second.token_ids
    assert first.stats["activation_sparsity"] == second.stats["activation_sparsity"]
    assert 0.3 < first.stats["activation_sparsity"]["mean"] < 0.7
    assert second.stats["bytes_per_token"] < 0.95 * first.stats["bytes_per_token"]


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.model)
def test_a_batch_gives_what_each_gives_alone(row: Row, tmp_path: Path) -> None:
    engine = prosparse.load(row.make(tmp_path / "model"), weights="bf16")
    prompts = ["a", "prompt of another length", "a"]
    together = engine.generate(prompts, max_new_tokens=10)
    assert [result.token_ids for result in together] == [
        engine.generate(prompt, max_new_tokens=10).token_ids for prompt in prompts
    ]


def test_counts_the_zeros_of_the_formulas(tmp_path: Path) -> None:
    """One layer, so that float64 can be asked directly: relu(fc1 norm h) of the tokens of a decode."""
    row = Row(OPT.model, OPT.config, {**OPT.sizes, "num_hidden_layers": 1}, OPT.changes, OPT.write)
    folder, ids = row.make(tmp_path / "model"), some_tokens(30, seed=4)
    engine = prosparse.load(folder, weights="fp32")
    seen: list[Tensor] = []
    ffn: Any = engine.decoder.blocks[0][1]
    prefill = ffn.prefill
    ffn.prefill = lambda residual: prefill(residual, lambda _, x, value, h: seen.append(h) or h)
    session = Session(engine.decoder, engine.kv_dtype, 1, 64)
    for i, token in enumerate(ids):
        session.decode(torch.tensor([[token]]), (0,), (i,))
    engine.logits(ids)
    sparsity = activation_sparsity(session, engine.config.neurons_per_token)
    assert sparsity is not None
    assert sparsity["mean"] == pytest.approx(float((torch.cat(seen) == 0).double().mean()), abs=1e-3)


def test_positions_end_where_the_table_does(tmp_path: Path) -> None:
    row = Row(OPT.model, OPT.config, {**OPT.sizes, "max_position_embeddings": 40}, OPT.changes, OPT.write)
    folder, ids = row.make(tmp_path / "model"), some_tokens(40, seed=5)
    engine = prosparse.load(folder, weights="fp32")
    assert engine.context == 40
    assert_logits_close(engine.logits(ids), row.expected(folder, ids), "as many tokens as positions")
    with pytest.raises(UserError, match="context must be from 2 to 40 tokens"):
        prosparse.load(folder, context=41)


def test_fatrelu_can_be_asked_for(tmp_path: Path) -> None:
    folder = OPT.make(tmp_path / "model")
    relu, fat = prosparse.load(folder), prosparse.load(folder, fatrelu_threshold=0.5)
    assert str(fat.config.activation) == "fatrelu(0.5)"
    means = [engine.generate("abc", max_new_tokens=12).stats["activation_sparsity"]["mean"] for engine in (relu, fat)]
    assert means[1] > means[0] + 0.1


def test_plans_name_what_these_blocks_have_not(tmp_path: Path) -> None:
    folder = OPT.make(tmp_path / "model")
    config = prosparse.ModelConfig.from_hf(folder)
    layers = (LayerPlan("dense"), LayerPlan("exact"), LayerPlan("dense"))
    mixed = prosparse.load(folder, weights="fp32", plan=Plan(fingerprint(config), layers, "a test"))
    assert [type(ffn).__name__ for _, ffn in mixed.decoder.blocks] == [
        "PlainDenseFFN",
        "PlainExactFFN",
        "PlainDenseFFN",
    ]
    bundled = Plan(fingerprint(config), (LayerPlan("exact", "bundled"),) * 3, "a test")
    with pytest.raises(UserError, match="layout bundled is for layers of one gated FFN"):
        prosparse.load(folder, plan=bundled)
