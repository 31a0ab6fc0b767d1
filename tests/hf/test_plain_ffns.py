"""OPT and Falcon with ReLU: the Linear after the ReLU reads the rows of what is not zero."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import prosparse
from prosparse.errors import UnsupportedError

PROMPT = torch.tensor([[1, 40, 41, 42, 50, 51, 52, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24]])
KEYS: dict[str, dict[str, Any]] = {
    "OPT": {"ffn_dim": 96, "activation_function": "relu", "word_embed_proj_dim": 32},
    "Falcon": {"activation": "relu", "num_kv_heads": 2, "new_decoder_architecture": True},
    "Falcon 7B": {"activation": "relu", "bias": True},
}


def make(name: str, **keys: Any) -> Any:
    family = name.split()[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, max_position_embeddings=64,
        **{**KEYS[name], **keys},
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # as made, biases are zero and logits nearly so
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 and parameter.mean() == 1 else 0.0, 0.2)
    return model


def downs(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith(("fc2", "dense_4h_to_h"))]


@pytest.fixture(params=KEYS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def generate(model: Any, prompt: Any = PROMPT, **options: Any) -> Any:
    return model.generate(
        prompt, max_new_tokens=12, pad_token_id=0, eos_token_id=None, **{"do_sample": False, **options}
    )


def test_generates_what_the_model_generates(name: str, op_calls: Any) -> None:
    model = make(name)
    reference = copy.deepcopy(model)
    prosparse.accelerate(model)
    assert all(type(down).__name__.startswith("Accelerated") for down in downs(model))
    with op_calls:
        found = generate(model)
    assert torch.equal(found, generate(reference))
    assert op_calls.names == ["axpy_active"] * 2 * 11, "two layers, every token but the first"
    batch = PROMPT.view(3, 6)
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        assert torch.equal(generate(model, batch, **options), generate(reference, batch, **options))
    with torch.no_grad():
        close = torch.allclose(model(PROMPT[:, :1]).logits, reference(PROMPT[:, :1]).logits, rtol=1e-4, atol=1e-4)
    assert close


def test_counts_zeros(name: str) -> None:
    model, shares = make(name), []
    prosparse.accelerate(model)
    handles = [
        down.register_forward_pre_hook(lambda _, args: shares.append(float((args[0] == 0).double().mean())))
        for down in downs(model)
    ]
    generate(model)
    for handle in handles:
        handle.remove()
    stats = prosparse.stats(model)
    assert stats["decode_tokens"] == 11
    for layer, share in enumerate(stats["activation_sparsity"]["layers"]):
        assert share == pytest.approx(sum(shares[2 + layer :: 2]) / 11, abs=1e-6)
        assert 0.2 < share < 0.8


def test_leaves_no_trace(name: str) -> None:
    model = make(name)
    classes = [type(module) for module in model.modules()]
    before = {key: (value.clone(), value.stride()) for key, value in model.state_dict().items()}
    attributes = [sorted(module.__dict__) for module in model.modules()]
    prosparse.accelerate(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key][0]) for key, value in model.state_dict().items())
    prosparse.accelerate(prosparse.accelerate(model))
    prosparse.restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert [sorted(module.__dict__) for module in model.modules()] == attributes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key][0]) and value.stride() == before[key][1]


def test_copies_pickles_and_saves(name: str, tmp_path: Path) -> None:
    model = make(name)
    expected = generate(model)
    prosparse.accelerate(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(downs(twin)[0]) is type(downs(model)[0])
        assert torch.equal(generate(twin), expected)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(generate(type(model).from_pretrained(tmp_path / "saved")), expected)


def test_16_bit_and_gradients(name: str) -> None:
    model = make(name).to(torch.bfloat16)
    reference = copy.deepcopy(model)
    prosparse.accelerate(model)
    with torch.no_grad():
        found, expected = model(PROMPT[:, :4]).logits.float(), reference(PROMPT[:, :4]).logits.float()
    assert float((found - expected).norm() / expected.norm()) < 0.02
    model(PROMPT[:, :4]).logits.float().sum().backward()
    reference(PROMPT[:, :4]).logits.float().sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_what_it_leaves_alone(caplog: pytest.LogCaptureFixture) -> None:
    gelu = make("Falcon", activation="gelu")
    assert prosparse.accelerate(gelu) is gelu
    assert "its activation GELUActivation makes no exact zeros" in caplog.text
    with pytest.raises(UnsupportedError, match="for such FFNs there is no dense kernel here"):
        prosparse.accelerate(make("OPT"), mode="dense")

    class Doubling(nn.Linear):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    model = make("OPT")
    other = Doubling(96, 32)
    model.model.decoder.layers[0].fc2 = other
    prosparse.accelerate(model)
    assert [type(down).__name__ for down in downs(model)] == ["Doubling", "AcceleratedLinear"]
