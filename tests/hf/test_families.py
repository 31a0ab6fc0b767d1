"""MiniCPM, SparseLlama and Bamboo in transformers: the same network as our engine's, also after saving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_engine import assert_logits_close, decoded_logits, make_model, some_tokens
from torch import Tensor

import prosparse
from prosparse.errors import ConfigError, UserError
from prosparse.hf import FATReLU

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "fatrelu", "hidden_act_param": 0.25},
    "sparsellama": {},
    "minicpm": {"tied": True},
    "bamboo": {},
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", family=family, **FAMILIES[family])


def load(folder: Path, mode: str = "auto", **options: Any) -> Any:
    return prosparse.AutoModelForCausalLM.from_pretrained(folder, mode=mode, dtype=torch.float32, **options)


@torch.no_grad()
def logits(model: Any, ids: list[int], chunk: int) -> Tensor:
    """[tokens, vocab], fed in chunks through the cache."""
    cache, rows = None, []
    for part in torch.tensor([ids]).split(chunk, dim=1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0])
    return torch.cat(rows)


def test_logits_equal_our_engine(family: str, folder: Path) -> None:
    ids = some_tokens(60)
    engine = prosparse.load(folder, weights="fp32")
    model = load(folder)
    assert type(model.model.layers[0].mlp).__name__.startswith("Accelerated")
    assert model.model.layers[0].mlp.activation == engine.config.activation
    assert_logits_close(logits(model, ids, chunk=60), engine.logits(ids), f"{family} prefill")
    assert_logits_close(logits(model, ids, chunk=1), decoded_logits(engine, ids), f"{family} decode")
    assert_logits_close(logits(model, ids, chunk=7), engine.logits(ids), f"{family} short steps")
    sparsity = prosparse.stats(model)["activation_sparsity"]["mean"]
    assert sparsity > 0.4
    prosparse.restore(model)
    assert_logits_close(logits(model, ids, chunk=1), engine.logits(ids), f"{family} restored")


def test_generates_with_any_cache_and_shows_its_insides(folder: Path) -> None:
    model = load(folder, attn_implementation="eager")  # the only one that can show attention weights
    prompt = torch.tensor([some_tokens(30)])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    exact = model.generate(prompt, **options)
    prosparse.restore(model)
    for cache in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert torch.equal(model.generate(prompt, **options, **cache), exact)
    out = model(prompt, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2


def test_saved_model_is_read_by_both_sides(family: str, folder: Path, tmp_path: Path) -> None:
    ids = some_tokens(40)
    model = load(folder)
    expected = logits(model, ids, chunk=40)
    model.save_pretrained(tmp_path / "saved")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved"), ids, chunk=40), expected)
    engine = prosparse.load(tmp_path / "saved", weights="fp32")
    assert_logits_close(engine.logits(ids), expected, f"{family} saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["model_type"] == family and "auto_map" not in saved


def test_config_without_model_type_but_with_remote_code(tmp_path: Path) -> None:
    """The published MiniCPM-S-1B-sft: only architectures and auto_map say what it is."""
    folder = make_model(tmp_path / "model", family="minicpm", tied=True)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_minicpm.MiniCPMConfig",
        "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
    }
    assert "model_type" not in config
    (folder / "config.json").write_text(json.dumps(config))
    with prosparse.patched():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(model).__module__ == "prosparse.hf.minicpm"
    assert tokenizer("ab").input_ids
    assert_logits_close(logits(model, some_tokens(20), 20), prosparse.load(folder).logits(some_tokens(20)), "", 0.02)


@pytest.mark.parametrize("name", ["minicpm-s-1b-sft", "minicpm-2b-128k", "prosparse-llama-2-7b", "bamboo-base"])
def test_published_configs_say_the_same_to_both_sides(name: str, tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "fixtures" / "configs" / f"{name}.json"
    shutil.copy(source, tmp_path / "config.json")
    ours = prosparse.ModelConfig.from_hf(tmp_path)
    with prosparse.patched():
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.hidden_size == ours.hidden and theirs.intermediate_size == ours.neurons
    assert theirs.head_dim == ours.head_dim and theirs.num_key_value_heads == ours.kv_heads
    assert theirs.tie_word_embeddings == ours.tied_embeddings and theirs.rms_norm_eps == ours.norm_eps
    assert theirs.rope_parameters["rope_theta"] == ours.rope.theta
    assert theirs.rope_parameters["rope_type"] == ours.rope.kind
    assert getattr(theirs, "sliding_window", None) == ours.sliding_window
    if ours.family == "minicpm":
        assert theirs.scale_emb == ours.embed_scale
        assert theirs.scale_depth / theirs.num_hidden_layers**0.5 == pytest.approx(ours.residual_scale)
        assert theirs.dim_model_base / theirs.hidden_size == pytest.approx(ours.logit_scale)


def test_minicpm_with_silu_stays_dense(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="minicpm", tied=True, hidden_act="silu", hidden_act_param=None)
    model = load(folder)
    assert type(model.model.layers[0].mlp) is transformers.models.llama.modeling_llama.LlamaMLP
    ids = some_tokens(30)
    assert_logits_close(logits(model, ids, 30), prosparse.load(folder, weights="fp32").logits(ids), "silu")
    with pytest.raises(UserError, match="mode exact needs an activation that makes exact zeros.*silu"):
        load(folder, mode="exact")


def test_fatrelu_needs_its_threshold(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="sparsellama", hidden_act_param=None)
    with pytest.raises(ConfigError, match="hidden_act_param must be the threshold of fatrelu.*got None"):
        load(folder)
    with pytest.raises(UserError, match="fatrelu: no threshold was set"):
        FATReLU()(torch.ones(2))
    x = torch.tensor([-1.0, 0.0, 0.4, 0.5, 2.0, float("nan")])
    assert torch.equal(FATReLU(0.5)(x)[:5], torch.tensor([0, 0, 0, 0.5, 2.0]))
    assert FATReLU(0.5)(x)[5].isnan() and torch.equal(FATReLU(0.0)(x)[:5], torch.relu(x)[:5])
