"""accelerate(mode="predicted"): what our engine computes with the same predictor, inside a live model."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rows import ROWS
from predictors import low_rank, predictor_of
from tiny_engine import assert_logits_close, make_model, some_tokens
from tiny_families import write_falcon, write_opt
from torch import Tensor

import prosparse
import prosparse.hf.live as live
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity, predicted_sparsity
from prosparse.errors import UnsupportedError, UserError
from prosparse.weights.predictor import KINDS, Predictor

IDS = some_tokens(24)
PLAIN = [row for row in ROWS if row.write in (write_opt, write_falcon)]


def gated(family: str) -> Any:
    return lambda folder: make_model(folder, family=family, tied=family == "minicpm")


MODELS: dict[str, Any] = {
    **{family: gated(family) for family in ("sparsellama", "minicpm", "bamboo")},
    **{row.model: row.make for row in PLAIN},
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MODELS[request.param](tmp_path / "model")


def load(folder: Path) -> Any:
    model = prosparse.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return prosparse.restore(model)


@torch.no_grad()
def step_by_step(model: Any) -> Tensor:
    """[tokens, vocab], each token a decode step."""
    cache, rows = None, []
    for token in IDS:
        out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0])
    return torch.cat(rows)


def test_computes_what_our_engine_does(folder: Path) -> None:
    exact = prosparse.load(folder, weights="fp32", mode="exact")
    model = load(folder)
    whole = step_by_step(prosparse.accelerate(model, "exact"))
    for kind in KINDS:
        predictor = predictor_of(exact, kind, -0.5 if kind == "low_bit_gate" else 0.0)
        engine = prosparse.load(folder, weights="fp32", predictor=predictor)
        session = Session(engine.decoder, engine.kv_dtype, 1, engine.context)
        expected = torch.cat([session.decode(torch.tensor([[token]]), (0,), (i,)) for i, token in enumerate(IDS)])
        prosparse.accelerate(model, predictor=predictor)
        found = step_by_step(model)
        assert_logits_close(found, expected, kind)
        assert float((found - whole).norm() / whole.norm()) > 0.01, "a guess misses something"
        stats = prosparse.stats(model)
        assert stats["decode_tokens"] == len(IDS)
        assert stats["predicted_sparsity"] == predicted_sparsity(session, engine.decoder)
        assert 0.1 < stats["predicted_sparsity"]["mean"] < 0.9
        assert stats["activation_sparsity"] == activation_sparsity(session, engine.config.neurons)
        prosparse.accelerate(model, predictor=predictor_of(exact, kind, math.inf))
        assert_logits_close(step_by_step(model), whole, "one that names all is exact")
        assert prosparse.stats(model, reset=True)["predicted_sparsity"]["mean"] == 0
        assert prosparse.stats(model)["predicted_sparsity"] is None


def test_leaves_no_trace(folder: Path) -> None:
    model = load(folder)
    state = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    attributes = [(type(module), sorted(module.__dict__)) for module in model.modules()]
    predictor = predictor_of(prosparse.load(folder, weights="fp32"), "low_bit_gate", 0.0)
    prosparse.accelerate(model, "predicted", predictor=predictor)
    assert list(model.state_dict()) == list(state)
    prosparse.accelerate(model, "exact")
    assert prosparse.stats(model)["predicted_sparsity"] is None
    prosparse.restore(prosparse.accelerate(model, predictor=predictor))
    assert [(type(module), sorted(module.__dict__)) for module in model.modules()] == attributes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name][0]) and value.stride() == state[name][1], name


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_rounded_weights(fmt: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="minicpm", tied=True)
    exact = prosparse.load(folder, weights=fmt, lm_head="fp32")
    every, some = (predictor_of(exact, "sign_bits", offset) for offset in (math.inf, 0.0))
    model = prosparse.accelerate(load(folder), weights=fmt, predictor=some)
    found = step_by_step(model)
    whole = step_by_step(prosparse.accelerate(model, "exact"))
    assert torch.equal(step_by_step(prosparse.accelerate(model, predictor=every)), whole)
    assert not torch.equal(found, whole)
    assert torch.equal(step_by_step(prosparse.accelerate(model, predictor=some)), found)


def test_layers_without_a_predictor_are_exact(llama_folder: Path) -> None:
    whole = predictor_of(prosparse.load(llama_folder, weights="fp32"), "sign_bits", 0.0)
    model = prosparse.accelerate(
        load(llama_folder), predictor=dataclasses.replace(whole, layers=(None, *whole.layers[1:]))
    )
    assert [layer.mlp.mode for layer in model.model.layers] == ["exact", "predicted", "predicted"]
    step_by_step(model)
    shares = prosparse.stats(model)["predicted_sparsity"]
    assert shares["layers"][0] is None and shares["mean"] == pytest.approx(sum(shares["layers"][1:]) / 2, abs=1e-6)


def test_the_packaged_model_finds_its_predictor() -> None:
    folder = Path(prosparse.__file__).parent / "assets" / "relu-llama-14m"
    model = prosparse.AutoModelForCausalLM.from_pretrained(folder)
    prosparse.accelerate(model, mode="predicted")
    model.config.pad_token_id = 0  # as scripts do; the model is still that of its folder
    prompt = torch.tensor([[5, 300, 20, 711, 9, 1000]])
    model.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0)
    stats = prosparse.stats(model)
    assert stats["predicted_sparsity"]["mean"] > 0.5 and stats["activation_sparsity"]["mean"] > 0.8
    prosparse.accelerate(prosparse.restore(model), mode="predicted")


def test_copies_and_casts(llama_folder: Path) -> None:
    predictor = predictor_of(prosparse.load(llama_folder, weights="fp32"), "low_rank", 0.5)
    model = prosparse.accelerate(load(llama_folder), predictor=predictor)
    expected = step_by_step(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_logits_close(step_by_step(twin), expected, "a twin")
    cast = model.to(torch.bfloat16)
    guess = cast.model.layers[0].mlp.guess
    assert guess.offset.dtype == torch.float32, "a predictor keeps its dtypes"
    assert float((step_by_step(cast).float() - expected).norm() / expected.norm()) < 0.1
    moved = cast.to("meta").model.layers[0].mlp.guess
    assert {tensor.device.type for tensor in moved.tensors} == {"meta"}


def test_compiles_without_a_break(llama_folder: Path) -> None:
    engine = prosparse.load(llama_folder, weights="fp32")
    for kind in ("low_rank", "low_bit_gate"):  # the third kind: test_compile.py
        model = prosparse.accelerate(load(llama_folder), predictor=predictor_of(engine, kind, 0.0))
        mlp, x = model.model.layers[1].mlp, torch.randn(1, 1, 64)
        torch.compiler.reset()
        with torch.no_grad():
            expected = mlp(x)
            assert torch.equal(torch.compile(mlp, fullgraph=True, backend="aot_eager")(x), expected)


def test_says_what_does_not_belong(llama_folder: Path, tmp_path: Path, tiny: Any) -> None:
    engine, model = prosparse.load(llama_folder, weights="fp32"), load(llama_folder)
    kinds = [type(module) for module in model.modules()]
    other = prosparse.load(
        make_model(tmp_path / "other", family="llama", neurons=100, layers=3, seed=1), weights="fp32"
    )
    own = predictor_of(engine)
    un_normed = dataclasses.replace(own, layers=(low_rank(engine, 0.0, un_normed=True),) * 3)
    for options, fault, message in (
        ({"mode": "predicted"}, UserError, "mode predicted needs a predictor; make one"),
        ({"mode": "exact", "predictor": own}, UserError, "a predictor was given, but mode is 'exact'"),
        (
            {"predictor": predictor_of(other)},
            UserError,
            "made for weights .* load the model in the dtype of its folder",
        ),
        ({"predictor": dataclasses.replace(own, model="x")}, UserError, "predictor: made for model x, but"),
        ({"predictor": dataclasses.replace(own, layers=own.layers[:2])}, UserError, "has 2 layers, the model 3"),
        ({"predictor": un_normed}, UnsupportedError, "predictor of layer 0 reads the residual before the norm"),
    ):
        with pytest.raises(fault, match=message):
            prosparse.accelerate(model, **options)
    assert [type(module) for module in model.modules()] == kinds
    with pytest.raises(UnsupportedError, match="mode predicted needs a whole model that prosparse.load runs"):
        prosparse.accelerate(model.model, predictor=own)
    silu = tiny(hidden_act="silu", intermediate_size=100, num_hidden_layers=3)
    with pytest.raises(UserError, match="mode predicted needs an activation that makes exact zeros.*uses silu"):
        prosparse.accelerate(silu, predictor=own)


@pytest.mark.parametrize("failing", [0, 3])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(failing: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Of OPT, whose layers have two modules that change."""
    folder = next(row for row in PLAIN if row.write is write_opt).make(tmp_path / "model")
    model = prosparse.accelerate(load(folder))
    kinds, expected = [type(module) for module in model.modules()], step_by_step(model)
    predictor, installed, calls = (
        predictor_of(prosparse.load(folder, weights="fp32"), "sign_bits", 0.0),
        live.install,
        0,
    )

    def install(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise MemoryError
        installed(*arguments)

    monkeypatch.setattr(live, "install", install)
    with pytest.raises(MemoryError):
        prosparse.accelerate(model, predictor=predictor)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(step_by_step(model), expected)


def test_a_predictor_file(llama_folder: Path, tmp_path: Path) -> None:
    predictor: Predictor = predictor_of(prosparse.load(llama_folder, weights="fp32"), "sign_bits", 0.0)
    predictor.save(tmp_path / "own.safetensors")
    models = [
        prosparse.accelerate(load(llama_folder), predictor=given) for given in (predictor, tmp_path / "own.safetensors")
    ]
    assert torch.equal(*map(step_by_step, models))


def test_a_model_that_was_never_in_a_folder(llama_folder: Path) -> None:
    """Its config is all there is to say what it is."""
    predictor = predictor_of(prosparse.load(llama_folder, weights="fp32"), "sign_bits", 0.0)
    model = load(llama_folder)
    expected = step_by_step(prosparse.accelerate(model, predictor=predictor))
    prosparse.restore(model).config._name_or_path = ""
    assert torch.equal(step_by_step(prosparse.accelerate(model, predictor=predictor)), expected)
