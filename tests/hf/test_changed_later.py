"""An accelerated model that is changed computes what it then is, and models made in inference mode are models too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

import prosparse
from prosparse.errors import UserError
from prosparse.hf.activation import FATReLU

PROMPT = torch.tensor([[1, 2, 3]])


def generate(model: Any) -> Tensor:
    return model.generate(PROMPT, max_new_tokens=8, do_sample=False)


def transpose(mlp: Any) -> None:
    mlp.gate_proj.weight.data = mlp.gate_proj.weight.data.t().contiguous().t()


def add_bias(mlp: Any) -> None:
    mlp.up_proj.bias = nn.Parameter(torch.linspace(-1, 1, mlp.up_proj.out_features))


def replace_activation(mlp: Any) -> None:
    mlp.act_fn = nn.SiLU()


CHANGES = [transpose, add_bias, replace_activation]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("copied", [False, True])
def test_an_ffn_that_is_changed(tiny: Callable[..., Any], change: Callable[[Any], None], copied: bool) -> None:
    expected, model = tiny(hidden_act="relu"), prosparse.accelerate(tiny(hidden_act="relu"))
    model = copy.deepcopy(model) if copied else model
    for own in (expected, model):
        change(own.model.layers[0].mlp)
    assert torch.equal(generate(model), generate(expected))
    assert prosparse.stats(model)["activation_sparsity"] is None, "one layer is dense"


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_threshold_that_is_changed(tiny: Callable[..., Any], weights: str | None) -> None:
    model, x = tiny(hidden_act="relu"), torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    for layer in model.model.layers:
        layer.mlp.act_fn = FATReLU(0.1)
    mlp = prosparse.accelerate(model, weights=weights).model.layers[0].mlp
    mlp.act_fn.threshold = 0.5
    with torch.no_grad():
        changed = mlp(x)
        torch.testing.assert_close(changed, mlp.dense_class.forward(mlp, x))
        prosparse.accelerate(model, weights=weights)
        assert torch.equal(mlp(x), changed), "what was found before is not believed"
        mlp.act_fn.threshold = 0.1
        torch.testing.assert_close(mlp(x), mlp.dense_class.forward(mlp, x))
    assert prosparse.stats(model)["decode_tokens"] == 1


class DroppingMLP(LlamaMLP):
    """As that of T5Gemma or Seed-OSS."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), self.residual_dropout, self.training)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_dropout_is_at_work_in_training_mode(tiny: Callable[..., Any], weights: str | None, op_calls: Any) -> None:
    model, x = tiny(hidden_act="relu"), torch.ones(1, 1, 32)
    for layer in model.model.layers:
        layer.mlp.__class__, layer.mlp.residual_dropout = DroppingMLP, 0.5
    mlp = prosparse.accelerate(model, weights=weights).model.layers[0].mlp
    with torch.no_grad(), op_calls:
        assert mlp(x).count_nonzero() == 32
        model.train()
        assert 0 < mlp(x).count_nonzero() < 32
        model.eval()
        assert mlp(x).count_nonzero() == 32
    assert op_calls.names.count("glu_exact") == 2


def test_a_model_made_in_inference_mode(tiny: Callable[..., Any], op_calls: Any) -> None:
    with torch.inference_mode():
        model = tiny(hidden_act="relu")
    expected = generate(model)
    prosparse.accelerate(model)
    with op_calls:
        assert torch.equal(generate(model), expected)
    assert set(op_calls.names) == {"glu_exact"}
    assert torch.equal(generate(prosparse.restore(model)), expected)
    with pytest.raises(UserError, match="was made in inference mode"):
        prosparse.accelerate(model, budget="1GiB", device="cpu")
    assert torch.equal(generate(model), expected)
