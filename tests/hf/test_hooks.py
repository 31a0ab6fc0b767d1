"""What others attach to an accelerated FFN (hooks, dispatch, adapters) works as on the model's own."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import prosparse
from prosparse.errors import UnsupportedError

PROMPT = torch.tensor([[1, 40, 41, 42, 90, 91, 92, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24]])


def generate(model: Any) -> Tensor:
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)


def test_hooks_on_the_ffn_see_what_they_would(model: Any, reference: Any) -> None:
    def record(which: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        mlp = which.model.layers[1].mlp
        handles = [mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))]
        handles.append(mlp.register_forward_hook(lambda _, args, out: seen.append(out.clone())))
        generate(which)
        for handle in handles:
            handle.remove()
        return seen

    expected = record(reference)
    actual = record(prosparse.accelerate(model))
    assert len(actual) == len(expected) == 24
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("child", ["gate_proj", "act_fn", "down_proj"])
def test_hooks_inside_the_ffn_make_its_layer_dense(child: str, model: Any, reference: Any) -> None:
    prosparse.accelerate(model)
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = getattr(model.model.layers[0].mlp, child).register_forward_hook(hook)
    assert torch.equal(generate(model), generate(reference))
    assert calls == 12
    assert [int(layer.mlp.prosparse_tokens) for layer in model.model.layers] == [0, 11, 11]
    handle.remove()
    generate(model)
    assert calls == 12 and int(model.model.layers[0].mlp.prosparse_tokens) == 11


class Adapter(nn.Module):
    """A Linear with something added, under the same name and with a weight, as adapters put it there."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x.sum(-1, keepdim=True)


def test_adapters_put_in_later_are_not_skipped(model: Any, reference: Any) -> None:
    reference = copy.deepcopy(reference)
    prosparse.accelerate(model)
    for which in (model, reference):
        which.model.layers[0].mlp.up_proj = Adapter(which.model.layers[0].mlp.up_proj)
        mlp = which.model.layers[1].mlp
        mlp.gate_proj.forward = lambda x, _proj=mlp.gate_proj: 2 * nn.Linear.forward(_proj, x)
    assert torch.equal(generate(model), generate(reference))
    assert [int(layer.mlp.prosparse_tokens) for layer in model.model.layers] == [0, 0, 11]


def test_wrapped_forwards_of_a_dispatched_model(model: Any, reference: Any) -> None:
    """device_map keeps the forward it wraps in `_old_forward` of the instance."""
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp._old_forward = mlp.forward
        mlp.forward = lambda *args, _mlp=mlp: _mlp._old_forward(*args)
    expected = generate(reference)
    prosparse.accelerate(model)
    assert torch.equal(generate(model), expected)
    assert prosparse.stats(model)["decode_tokens"] == 11
    prosparse.restore(model)
    assert all(layer.mlp._old_forward.__func__ is type(layer.mlp).forward for layer in model.model.layers)
    assert torch.equal(generate(model), expected)


def test_a_layer_on_the_disk_stays_with_transformers(
    llama_folder: Path, reference: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real device_map: hooks bring the weights of layer 1 for each step, so that there is nothing to run on."""
    if os.environ.get("CI") != "true":  # there it is installed
        pytest.importorskip("accelerate", reason="device_map needs the package accelerate of Hugging Face")
    places = {f"model.layers.{layer}": "disk" if layer == 1 else "cpu" for layer in range(3)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        llama_folder, dtype=torch.float32, device_map=places, offload_folder=tmp_path
    )
    expected = generate(reference)
    prosparse.accelerate(model)
    assert "1 FFNs of LlamaForCausalLM stay as they are; model.layers.1.mlp: its weights are offloaded" in caplog.text
    assert torch.equal(generate(model), expected)
    assert len(prosparse.stats(model)["activation_sparsity"]["layers"]) == 2
    with pytest.raises(UnsupportedError, match="is placed by a device_map, which rounded weights cannot follow"):
        prosparse.accelerate(model, weights="int8")
    prosparse.restore(model)
    assert torch.equal(generate(model), expected)
    assert [type(layer.mlp).__name__ for layer in model.model.layers] == ["LlamaMLP"] * 3
