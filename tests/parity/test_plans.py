"""Plans: a mixed one computes the same network, and one that does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from predictors import predictor_of
from tiny_engine import FP32_BOUND, assert_logits_close, decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.errors import MissingFileError, UserError
from prosparse.kernels.weight import FORMATS, LAYOUTS
from prosparse.placement import choose
from prosparse.plan import MODES, LayerPlan, Placement, Plan, Split, fingerprint

# A GEMM may sum in another order for another stride, and then rounds to its dtype: a few of its last places.
GEMM_BOUND = {"fp32": FP32_BOUND, "fp16": 5e-3, "bf16": 3e-2, "int8": 3e-2, "int4": 3e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", layers=3)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return prosparse.load(folder, weights="fp32")


def test_a_mixed_plan_computes_the_same(folder: Path, engine: Engine, tmp_path: Path) -> None:
    layers = (LayerPlan("dense"), LayerPlan("exact"), LayerPlan("dense"))
    plan = Plan(fingerprint(engine.config), layers, "a test")
    assert plan.mode == "mixed"
    (tmp_path / "plan.json").write_text(plan.to_json())
    ids = some_tokens(40)
    expected = decoded_logits(engine, ids)
    for given in (plan, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        mixed = prosparse.load(folder, weights="fp32", plan=given)
        assert mixed.plan == plan
        assert [type(ffn).__name__ for _, ffn in mixed.decoder.blocks] == ["DenseFFN", "ExactFFN", "DenseFFN"]
        assert_logits_close(decoded_logits(mixed, ids), expected, "mixed plan")


def test_every_mode_runs_on_every_layout(folder: Path, engine: Engine) -> None:
    ids = some_tokens(30)
    for weights in FORMATS:
        plans = [
            Plan(fingerprint(engine.config), (LayerPlan(mode, layout),) * 3, "a test")
            for mode in MODES
            for layout in LAYOUTS
        ]
        all_named = predictor_of(engine)
        engines = [prosparse.load(folder, weights=weights, plan=plan, predictor=all_named) for plan in plans]
        for plan, loaded in zip(plans, engines, strict=True):
            strides = {ffn.up.codes.stride(0) // ffn.up.codes.shape[1] for _, ffn in loaded.decoder.blocks}
            assert strides == {2 if plan.layers[0].layout == "bundled" else 1}
        decoded = [decoded_logits(each, ids) for each in engines]
        assert all(torch.equal(each, decoded[0]) for each in decoded), weights
        prefilled = [each.logits(ids) for each in engines]
        for plan, logits in zip(plans, prefilled, strict=True):
            assert_logits_close(logits, prefilled[0], f"{weights} {plan.layers[0]}", GEMM_BOUND[weights])


def test_a_plan_must_fit(folder: Path, engine: Engine, tmp_path: Path) -> None:
    plan = choose(engine.config, "exact")
    with pytest.raises(UserError, match="plan: made for model .* with 3 layers"):
        prosparse.load(folder, plan=Plan("0" * 16, plan.layers, ""))
    with pytest.raises(UserError, match="with 2 layers, but this model is .* with 3"):
        prosparse.load(folder, plan=Plan(plan.model, plan.layers[:2], ""))
    with pytest.raises(UserError, match="a plan already says.*mode 'exact' was given too"):
        prosparse.load(folder, mode="exact", plan=plan)
    silu = make_model(tmp_path / "silu", hidden_act="silu")
    config = prosparse.ModelConfig.from_hf(silu)
    with pytest.raises(UserError, match="has sparse layers, but silu makes no exact zeros"):
        prosparse.load(silu, plan=Plan(fingerprint(config), (LayerPlan("exact"),) * 2, ""))
    with pytest.raises(MissingFileError, match="cannot read the plan"):
        prosparse.load(folder, plan=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version is 99, expected 1"),
        ({"layers": 3}, "not a plan"),
        ({"layers": [3]}, "not a plan"),
        ({"layers": [{"mode": "exact", "colour": "red"}]}, "not a plan"),
        ({"layers": [{"mode": "guess"}]}, "mode is 'guess'; supported are dense, exact"),
        ({"layers": [{"mode": "exact", "layout": "columns"}]}, "layout is 'columns'; supported are rows, bundled"),
        ({"surprise": 1}, "not a plan"),
        ({"model": None}, "not a plan"),
    ],
)
def test_what_is_no_plan(engine: Engine, change: dict[str, Any], message: str) -> None:
    data = json.loads(choose(engine.config, "exact").to_json()) | change
    text = json.dumps({key: value for key, value in data.items() if value is not None})
    with pytest.raises(UserError, match=message):
        Plan.from_json(text, "plan.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"schema_version": 1}', "[" * 100000, "1" * 5000])
def test_what_is_no_json_object(text: str) -> None:
    with pytest.raises(UserError, match="^plan.json: "):
        Plan.from_json(text, "plan.json")


PLACEMENT = Placement(2000, 1999, 512, "bf16", "int8", True, "0123456789abcdef", 12.5)


def test_a_plan_for_two_devices_travels_as_json(engine: Engine) -> None:
    layers = (LayerPlan("exact", split=Split(100, 20)), LayerPlan("dense", "bundled", Split(0, 0, attention=False)))
    plan = Plan("0123", layers, "a test", PLACEMENT)
    assert Plan.from_json(plan.to_json()) == plan
    neurons = engine.config.neurons
    within = (LayerPlan("dense", split=Split(0, 0)),) * 2
    whole = (LayerPlan("exact", split=Split(neurons, neurons)), *within)
    Plan(fingerprint(engine.config), whole, "", PLACEMENT).check_fits(engine.config)
    beyond = (LayerPlan("exact", split=Split(neurons + 1, 0)), *within)
    with pytest.raises(UserError, match=f"layer 0 puts {neurons + 1} neurons on the GPU, but a layer has {neurons}"):
        Plan(fingerprint(engine.config), beyond, "", PLACEMENT).check_fits(engine.config)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(UserError, match="0 <= hot <= gate, got hot 3 and gate 2"):
        Split(2, 3)
    with pytest.raises(UserError, match="uses 2001 bytes of a budget of 2000"):
        dataclasses.replace(PLACEMENT, gpu_bytes=2001)
    for layers, placement in [((LayerPlan("exact"),), PLACEMENT), ((LayerPlan("exact", split=Split(1, 1)),), None)]:
        with pytest.raises(UserError, match="either every layer is split and there is a placement, or none is"):
            Plan("0123", layers, "", placement)
