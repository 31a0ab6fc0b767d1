"""What counts as a gated FFN: the formula is tried, and anything unknown is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import prosparse
from prosparse.errors import UnsupportedError
from prosparse.hf import FATReLU
from prosparse.hf.find import probe
from prosparse.kernels.activation import Activation


def test_what_it_leaves_alone(tiny: Callable[..., Any]) -> None:
    model = tiny(hidden_act="relu", num_hidden_layers=4)
    layers = model.model.layers
    layers[0].mlp.forward = lambda x: x
    layers[1].mlp.up_proj = nn.Sequential(layers[1].mlp.up_proj)
    layers[2].mlp.down_proj = nn.Linear(48, 32, bias=True)
    prosparse.accelerate(model)
    assert [type(layer.mlp).__name__ for layer in layers] == ["LlamaMLP"] * 3 + ["AcceleratedLlamaMLP"]


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Gemma"])
def test_finds_the_ffns_of_other_families(family: str) -> None:
    """Those that were made ReLU models; as published they are SiLU or GELU."""
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, vocab_size=64, hidden_act="relu", hidden_activation="relu", initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = torch.tensor([[1, 5, 9, 33]])
    expected = model.generate(prompt, **options)
    prosparse.accelerate(model)
    assert type(model.model.layers[1].mlp).__name__ == f"Accelerated{family}MLP"
    assert torch.equal(model.generate(prompt, **options), expected)
    assert prosparse.stats(model)["decode_tokens"] == 7


def test_experts_are_named(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 4}
    config = transformers.MixtralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, vocab_size=64, hidden_act="relu"
    )
    model = transformers.MixtralForCausalLM(config).eval()
    with caplog.at_level("WARNING", logger="prosparse"):
        prosparse.accelerate(model)
    assert "left as it is; model.layers.0.mlp.experts: it holds experts, each of which sees only some" in caplog.text
    with pytest.raises(
        UnsupportedError, match="no FFN that prosparse runs; model.layers.0.mlp.experts: it holds experts"
    ):
        prosparse.accelerate(model, mode="exact")


class Lookalike(nn.Module):
    def __init__(self, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.down_proj = nn.Linear(16, 8, bias=False)
        self.act_fn = act_fn


class Swapped(Lookalike):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


class DoubleReLU(Lookalike):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.act_fn(self.up_proj(x)))


class Plain(Lookalike):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_the_formula_is_tried_and_not_believed() -> None:
    relu = Activation("relu")
    assert probe(Plain(nn.ReLU()), relu) == relu
    assert probe(DoubleReLU(nn.ReLU()), relu) == Activation("relu", on_up=True)
    assert probe(Swapped(nn.ReLU()), relu) is None
    assert probe(Plain(nn.ReLU()), Activation("fatrelu", 0.01)) is None
    fat = Plain(FATReLU(0.01))
    assert probe(fat, Activation("fatrelu", 0.01)) == Activation("fatrelu", 0.01)
    assert probe(fat, Activation("fatrelu", 0.011)) is None
