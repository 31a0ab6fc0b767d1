"""The embedded model's card, and live transformers models of every structure that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rows import ROWS
from tiny_engine import make_model
from tiny_families import write_experts
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import prosparse
from prosparse.engine import load
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.errors import UnsupportedError, UserError
from prosparse.study.windows import cut, read_text

LAST_PLACE = 1e-4  # half a unit of the card's last place, and as much for sums in another order
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    gated = {**SIZES, "intermediate_size": 48, "initializer_range": 0.3}
    plain = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 48}
    opt = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3, "max_position_embeddings": 64}
    model: nn.Module = {
        "llama-relu": lambda: LlamaForCausalLM(LlamaConfig(**gated, hidden_act="relu")),
        "llama-silu": lambda: LlamaForCausalLM(LlamaConfig(**gated, hidden_act="silu")),
        "phi3-silu": lambda: Phi3ForCausalLM(Phi3Config(**gated, pad_token_id=0)),
        "opt-relu": lambda: OPTForCausalLM(OPTConfig(**opt)),
        "falcon-gelu": lambda: FalconForCausalLM(FalconConfig(**{**SIZES, "initializer_range": 0.3})),
        "gpt2-gelu": lambda: GPT2LMHeadModel(GPT2Config(**plain, initializer_range=0.3)),
    }[name]()
    return model


# where each model's down projection is, whose input is what we count
DOWN = {
    "llama": "mlp.down_proj",
    "phi3": "mlp.down_proj",
    "opt": "fc2",
    "falcon": "dense_4h_to_h",
    "gpt2": "mlp.c_proj",
}


def test_the_card_of_the_embedded_model() -> None:
    """Measured there with transformers; `activation_sparsity` of its sample, hot neurons and dead ones."""
    engine = load(weights="fp32")
    card = json.loads((EMBEDDED_MODEL / "card.json").read_text())["sample"]
    windows = cut(read_text(None), engine.tokenizer, card["window"], 10_000).inputs
    document = prosparse.measure(engine, [windows]).document
    claimed = card["fatrelu"]
    assert document["text"]["tokens"] == card["predictions"]
    layers = document["layers"]
    assert [layer["activation_sparsity"] for layer in layers] == pytest.approx(
        claimed["activation_sparsity"], abs=LAST_PLACE
    )
    assert document["mean"]["activation_sparsity"] == pytest.approx(claimed["mean_activation_sparsity"], abs=LAST_PLACE)
    assert [layer["dead"] for layer in layers] == pytest.approx(claimed["never_active"], abs=1)
    # the card counts the 307 hottest of 1536, the curve 307.2
    assert [layer["cdf"][20] for layer in layers] == pytest.approx(claimed["share_of_hottest_20_percent"], abs=5e-4)


@pytest.mark.parametrize("name", ["llama-relu", "llama-silu", "phi3-silu", "opt-relu", "falcon-gelu", "gpt2-gelu"])
def test_counts_are_those_of_what_enters_down(name: str) -> None:
    model = make(name)
    model.train()
    tokens = torch.randint(0, 64, (5, 12), generator=torch.Generator().manual_seed(1))
    expected: list[Tensor] = []
    wanted = DOWN[name.split("-")[0]]
    handles = [
        module.register_forward_pre_hook(lambda module, args: expected.append((args[0] != 0).reshape(60, -1).sum(0)))
        for path, module in model.named_modules()
        if path.endswith(wanted)
    ]
    model.eval()
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    model.train()
    report = prosparse.measure(model, [tokens], batch=5)
    assert report.counts.active.tolist() == torch.stack(expected).tolist()
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    gated = report.document["model"]["gated"]
    assert gated == (name in ("llama-relu", "llama-silu", "phi3-silu"))
    sparsity = report.document["mean"]["activation_sparsity"]
    assert 0.2 < sparsity < 0.8 if name.endswith("relu") else sparsity < 0.01
    assert 0.001 < report.document["mean"]["near_zero_share"]


def test_engine_and_transformers_agree(tmp_path: Path) -> None:
    """On a text, with BOS before every window, in fp32: gates within rounding of zero may fall on either side."""
    folder = make_model(tmp_path / "tiny", neurons=200)
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 40)
    ours = prosparse.measure(load(folder, weights="fp32"), tmp_path / "text.txt", window=50)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = prosparse.measure(model, tmp_path / "text.txt", window=50, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert ours.document["text"] == theirs.document["text"]
    assert ours.document["model"]["content"] == theirs.document["model"]["content"]
    total = int(ours.counts.active.sum())
    assert abs(ours.counts.active - theirs.counts.active).sum() < 1e-3 * total
    assert abs(ours.counts.overlap - theirs.counts.overlap).max() < 1e-3 * ours.counts.overlap.max()
    with pytest.raises(UserError, match="a text needs a tokenizer for this model"):
        prosparse.measure(model, tmp_path / "text.txt")


def test_an_accelerated_model_is_measured_as_it_was() -> None:
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    before = prosparse.measure(make("llama-relu"), [tokens])
    after = prosparse.measure(prosparse.accelerate(make("llama-relu")), [tokens])
    assert (before.counts.active == after.counts.active).all()


def test_models_of_other_kinds_are_told() -> None:
    model = make("llama-silu")
    model.model.layers[1].mlp = nn.ModuleDict({"experts": nn.ModuleList([model.model.layers[0].mlp])})
    with pytest.raises(UnsupportedError, match="mlp.experts holds experts, which see only some tokens"):
        prosparse.measure(model, [[[1, 2]]])
    model = make("llama-silu")
    model.model.layers[1].mlp.down_proj = nn.Linear(40, 32)
    with pytest.raises(UnsupportedError, match=r"FFNs have \[40, 48\] neurons"):
        prosparse.measure(model, [[[1, 2]]])


def test_hooks_are_gone_after_a_fault() -> None:
    model = make("llama-relu")

    def fails(layer: int, x: Tensor) -> Tensor:
        raise RuntimeError("no predictor")

    with pytest.raises(RuntimeError, match="no predictor"):
        prosparse.measure(model, [[[1, 2, 3]]], predictor=fails)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_engines_with_experts_are_told(tmp_path: Path) -> None:
    folder = next(row for row in ROWS if row.write is write_experts).make(tmp_path / "model")
    with pytest.raises(UnsupportedError, match="layers of this minicpm model hold 8 experts, each of which"):
        prosparse.measure(prosparse.load(folder), torch.ones(1, 8, dtype=torch.int64))
