"""Selectors that name nothing, everything, or are not numbers; the document of an evaluation; its picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from predictors import predictor_of

from prosparse.engine import Engine, load
from prosparse.errors import UserError
from prosparse.kernels.weight import in_format
from prosparse.study.predictors import Entrant, evaluate, without_training
from prosparse.study.predictors.apply import decoder_with
from prosparse.study.predictors.evaluate import choose
from prosparse.study.predictors.figure import draw
from prosparse.study.predictors.judge import judge
from prosparse.study.predictors.yardsticks import oracle, previous
from prosparse.study.windows import Windows, cut, read_text
from prosparse.weights.predictor import LayerPredictor, Predictor


@pytest.fixture(scope="module")
def windows(engine: Engine, text: Path) -> Windows:
    return cut(read_text(text), engine.tokenizer, 40, 200)


def not_numbers(engine: Engine) -> Predictor:
    """Scores overflow to infinity minus infinity."""
    own = predictor_of(engine)
    first = torch.full((2, engine.config.hidden), 3e38)
    second = torch.tensor([[3e38, -3e38]]).repeat(engine.config.neurons, 1)
    layer = LayerPredictor(
        "low_rank", torch.zeros(engine.config.neurons), in_format(first, "fp32"), in_format(second, "fp32")
    )
    return Predictor((layer,) * engine.config.layers, own.model, own.content)


def test_nothing_everything_and_nan_are_judged_and_reported(engine: Engine, windows: Windows) -> None:
    selectors = {
        "nothing": predictor_of(engine, offset=-math.inf),
        "everything": predictor_of(engine, offset=math.inf),
        "nan": not_numbers(engine),
    }
    nothing, everything, nan = judge(engine, selectors, windows)
    assert nothing.recall == 0.0 and nothing.precision is None and nothing.predicted_sparsity == 1.0
    assert nothing.missed_mass == 1.0 and nothing.kl_divergence.value > 0
    assert any("names no neuron in layers 0, 1" in remark for remark in nothing.remarks)
    for found in (everything, nan):
        assert found.recall == 1.0 and found.predicted_sparsity == 0.0 and found.kl_divergence.value == 0.0
        assert any("names every neuron" in remark for remark in found.remarks)
        assert found.ffn_bytes > found.exact_ffn_bytes
    count = 2 * windows.targets.numel() * engine.config.neurons
    assert any(remark.startswith(f"{count} scores were not numbers") for remark in nan.remarks)


def test_a_predictor_for_no_layer_is_exact(engine: Engine, windows: Windows) -> None:
    whole = predictor_of(engine)
    found = judge(engine, {"none": Predictor((None,) * 2, whole.model, whole.content)}, windows)[0]
    assert found.recall is None and found.kl_divergence.value == 0.0 and found.ffn_bytes == found.exact_ffn_bytes
    assert found.remarks == ("predicts in no layer: every gate is read whole, as in mode exact",)
    assert {layer.kind for layer in found.layers} == {"exact"}


def test_yardsticks(engine: Engine, windows: Windows) -> None:
    best, before = judge(engine, {"oracle": oracle, "previous": previous}, windows)
    assert best.recall == best.precision == 1.0 and best.kl_divergence.value == 0.0
    assert best.ffn_bytes < best.exact_ffn_bytes
    assert before.recall is not None and 0 < before.recall < 1 and before.kl_divergence.value > 0
    first = 1 / windows.targets.shape[1]  # of the tokens have none before them, and get all neurons
    assert before.layers[0].predicted_sparsity < 1 - first


@pytest.mark.parametrize("how", ["nothing", "everything", "nan"])
def test_they_decode_as_well(engine: Engine, how: str) -> None:
    from tiny_engine import some_tokens

    from prosparse.engine.session import Session

    made = {"nothing": predictor_of(engine, offset=-math.inf), "everything": predictor_of(engine)}
    decoder = decoder_with(engine, made.get(how) or not_numbers(engine))
    session = Session(decoder, engine.kv_dtype, 1, 16)
    ids = torch.tensor(some_tokens(8))
    rows = torch.cat([session.decode(ids[i].view(1, 1), (0,), (i,)) for i in range(8)])
    assert bool(rows.isfinite().all())
    if how != "nothing":
        exact = Session(decoder_with(engine, "exact"), engine.kv_dtype, 1, 16)
        assert rows.equal(torch.cat([exact.decode(ids[i].view(1, 1), (0,), (i,)) for i in range(8)]))


def test_everything_that_needs_no_training_is_judged(engine: Engine, text: Path, tmp_path: Path) -> None:
    entrants = without_training(engine, text)
    seen: list[str] = []
    document = evaluate(
        engine, entrants, text=text, predictions=100, target_kl=0.05,
        time=lambda which: dict.fromkeys(which, 10.0), progress=lambda what, done, total: seen.append(what),
    )  # fmt: skip
    assert json.loads(json.dumps(document)) == document and "judging" in seen
    families = {point["family"] for point in document["points"]}
    assert families == {"low_rank", "low_bit_gate", "sign_bits", "hot", "random", "previous", "oracle"}
    by_name = {point["name"]: point for point in document["points"]}
    chosen = by_name[document["chosen"]]
    able = [p for p in document["points"] if p["is_predictor"] and p["kl_divergence"]["value"] <= 0.05]
    assert chosen in able and all(chosen["bytes_per_token"] <= point["bytes_per_token"] for point in able)
    assert by_name["oracle"]["bytes_per_token"] < document["modes"]["exact"]["bytes_per_token"]
    assert document["modes"]["exact"]["tokens_per_s"] == chosen["tokens_per_s"] == 10.0
    assert by_name["oracle"]["tokens_per_s"] is None
    pytest.importorskip("matplotlib")
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        draw(document, tmp_path / f"figure{suffix}")
        assert (tmp_path / f"figure{suffix}").read_bytes().startswith(start)
    untimed = document | {"modes": {mode: own | {"tokens_per_s": None} for mode, own in document["modes"].items()}}
    draw(untimed | {"chosen": None}, tmp_path / "bytes.png")
    with pytest.raises(UserError, match="ending in .png, .svg, .pdf, got figure.gif"):
        draw(document, tmp_path / "figure.gif")


def test_the_chosen_point_keeps_to_the_target_or_there_is_none() -> None:
    def point(name: str, kl: float, nbytes: int, is_predictor: bool = True) -> dict[str, object]:
        return {"name": name, "kl_divergence": {"value": kl}, "bytes_per_token": nbytes, "is_predictor": is_predictor}

    points = [point("a", 0.1, 5), point("b", 0.001, 9), point("c", 0.004, 8), point("oracle", 0.0, 1, False)]
    assert choose(points, 0.005) == "c" and choose(points, 0.2) == "a" and choose(points, 1e-9) is None


def test_a_predictor_of_another_model_is_refused(engine: Engine, text: Path, guessable: Path) -> None:
    made = predictor_of(load(guessable, weights="fp32", fatrelu_threshold=0.5))
    with pytest.raises(UserError, match="made for model .*, but this model's are"):
        evaluate(engine, [Entrant("other", None, made)], text=text)
    with pytest.raises(UserError, match="there is nothing to judge"):
        evaluate(engine, [], text=text)
