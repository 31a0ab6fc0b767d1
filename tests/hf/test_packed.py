"""accelerate(weights=...): rounded in place, computed by the kernels, and honest about what is gone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prosparse
import prosparse.hf.live as live
from prosparse.errors import UnsupportedError, UserError
from prosparse.hf.packed import PackedLinear
from prosparse.kernels.quant import dequantize, quantize

PROMPT = torch.tensor([[1, 40, 41, 42, 90, 91, 92, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24]])
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def generate(model: Any) -> Tensor:
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)


def rounded(model: Any, fmt: str, linears: bool) -> Any:
    """A copy in floats whose Linears hold the rounded values."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (linears or name.endswith(PROJECTIONS)):
            down, matrix = name.endswith("down_proj"), module.weight.data
            matrix = (matrix.t() if down else matrix).contiguous()
            value = dequantize(quantize(matrix, fmt), matrix.shape[1])
            module.weight = nn.Parameter(value.t().contiguous() if down else value)
    return model


def assert_near(found: Tensor, wanted: Tensor, bound: float = 1e-3) -> None:
    """Kernels multiply packed weights with inputs in fixed point, 2^-16 of a group's largest."""
    assert found.dtype == wanted.dtype and float((found - wanted).norm() / wanted.norm()) < bound


def bytes_of(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("linears", [False, True])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_generates_what_the_rounded_weights_do(model: Any, op_calls: Any, fmt: str, linears: bool) -> None:
    expected = rounded(model, fmt, linears)
    before = bytes_of(model)
    assert prosparse.accelerate(model, weights=fmt, linears=linears) is model
    assert bytes_of(model) < before
    with op_calls:
        assert torch.equal(generate(model), generate(expected))
    assert op_calls.names.count("glu_exact") == 3 * 11  # layers, steps
    assert op_calls.names.count("linear") == (11 * (3 * 4 + 1) + 1 if linears else 0)  # and the prompt's last logits
    with torch.no_grad():
        for ids in (PROMPT, PROMPT[:, :3]):
            assert_near(model(ids).logits, expected(ids).logits)
    found, wanted = prosparse.stats(model), prosparse.accelerate(expected)
    generate(wanted)
    assert found["decode_tokens"] == 11
    assert found["activation_sparsity"]["mean"] == pytest.approx(
        prosparse.stats(wanted)["activation_sparsity"]["mean"], abs=0.01
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(model: Any, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    expected = rounded(model, "int8", True).float()
    prosparse.accelerate(model, weights="int8", linears=True)
    with torch.no_grad():
        for ids in (PROMPT, PROMPT[:, :3]):
            found = model(ids).logits
            assert found.dtype == dtype
            assert_near(found.float(), expected(ids).logits, 0.02)


def test_a_model_without_zeros_runs_dense(tiny: Any, op_calls: Any) -> None:
    model = tiny(hidden_act="silu")
    expected = rounded(model, "int8", False)
    prosparse.accelerate(model, weights="int8")
    ids = torch.tensor([[3, 9, 11]])
    with op_calls, torch.no_grad():
        assert_near(model(ids).logits, expected(ids).logits)
    assert op_calls.names == ["glu_dense"] * 2


def test_an_accelerated_model_is_rounded_too_and_modes_change(model: Any, op_calls: Any) -> None:
    expected = generate(rounded(model, "int4", False))
    prosparse.accelerate(model)
    prosparse.accelerate(model, weights="int4")
    assert torch.equal(generate(model), expected)
    prosparse.accelerate(model, mode="dense")
    with op_calls:
        assert torch.equal(generate(model), expected)
    assert set(op_calls.names) == {"glu_dense", "dequantize"}
    prosparse.accelerate(model, weights="int4", linears=True)  # the rest, later
    assert isinstance(model.lm_head, PackedLinear)


def test_copies_and_pickles(model: Any) -> None:
    prosparse.accelerate(model, weights="int4", linears=True)
    expected = generate(model)
    assert torch.equal(generate(copy.deepcopy(model)), expected)
    # not the whole model: transformers hooks local functions into it once somebody has asked for hidden states
    model.model.layers[0].mlp = pickle.loads(pickle.dumps(model.model.layers[0].mlp))
    model.lm_head = pickle.loads(pickle.dumps(model.lm_head))
    assert torch.equal(generate(model), expected)


def test_gradients_pass_to_inputs(model: Any) -> None:
    expected = rounded(model, "int8", True)
    prosparse.accelerate(model, weights="int8", linears=True)
    grads = []
    for each in (model, expected):
        embeds = each.get_input_embeddings()(PROMPT[:, :4]).detach().requires_grad_()
        each(inputs_embeds=embeds).logits.square().sum().backward()
        grads.append(embeds.grad)
    assert_near(*grads)


def test_what_is_gone_is_told(model: Any, tmp_path: Path) -> None:
    prosparse.accelerate(model, weights="int4")
    with pytest.raises(UserError, match="restore: the weights were rounded to int4 and the others dropped; load"):
        prosparse.restore(model)
    with pytest.raises(UserError, match="rounded to int4 already; load the model again for int8"):
        prosparse.accelerate(model, weights="int8")
    with pytest.raises(UnsupportedError, match="state_dict: .* rounded to int4, .*`prosparse convert MODEL -o DIR"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int3"}, "accelerate: weights is 'int3'; supported are int8, int4, or None"),
        ({"linears": True}, "accelerate: linears=True is about rounding; pass weights="),
    ],
)
def test_wrong_options(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prosparse.accelerate(model, **options)


def test_an_error_leaves_the_model_as_it_was(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(model)
    kinds = [type(module) for module in model.modules()]
    identities = [id(parameter) for parameter in model.parameters()]
    calls, pack = 0, live.pack_children

    def fail_late(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise MemoryError
        return pack(*arguments, **options)

    monkeypatch.setattr(live, "pack_children", fail_late)
    with pytest.raises(MemoryError):
        prosparse.accelerate(model, weights="int8", linears=True)
    assert [type(module) for module in model.modules()] == kinds
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert torch.equal(generate(model), expected)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="model.layers.1.self_attn.o_proj has weights that are NaN or infinite"):
        prosparse.accelerate(model, weights="int8")
    assert [type(module) for module in model.modules()] == kinds
