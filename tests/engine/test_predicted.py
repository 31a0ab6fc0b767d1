"""Mode predicted, from a predictor's file to tokens."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from predictors import low_rank, predictor_of
from tiny_engine import decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.engine.session import Session
from prosparse.errors import CheckpointError, MissingFileError, UserError
from prosparse.kernels.tally import NONZERO, PREDICTED
from prosparse.plan import LayerPlan, Plan, fingerprint
from prosparse.weights.predictor import KINDS, LayerPredictor, Predictor

IDS = some_tokens(24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(scope="module")
def exact(folder: Path) -> Engine:
    return prosparse.load(folder, mode="exact")


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_names_all_gives_the_bits_of_exact(folder: Path, kind: str, weights: str) -> None:
    exact = prosparse.load(folder, mode="exact", weights=weights)
    predicted = prosparse.load(folder, weights=weights, predictor=predictor_of(exact, kind))
    assert predicted.plan.mode == "predicted"
    assert torch.equal(decoded_logits(predicted, IDS), decoded_logits(exact, IDS))


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_names_some_reads_less_and_is_the_same_fused_and_block_by_block(
    folder: Path, exact: Engine, kind: str
) -> None:
    offset = {"sign_bits": 0.0, "low_bit_gate": -0.01, "low_rank": 0.0}[kind]
    engine = prosparse.load(folder, predictor=predictor_of(exact, kind, offset))
    fused = decoded_logits(engine, IDS)
    blocks = copy.copy(engine)
    blocks.decoder = copy.copy(engine.decoder)
    blocks.decoder._runs = [dataclasses.replace(run, whole=None) for run in engine.decoder._runs]
    assert torch.equal(decoded_logits(blocks, IDS), fused)
    assert not torch.equal(fused, decoded_logits(exact, IDS))
    assert bool(fused.isfinite().all())


def test_one_that_names_nothing_crashes_nothing_and_is_reported(folder: Path, exact: Engine) -> None:
    engine = prosparse.load(folder, predictor=predictor_of(exact, offset=-math.inf))
    session = Session(engine.decoder, engine.kv_dtype, 1, 8)
    assert bool(session.decode(torch.tensor([[5]]), (0,), (0,)).isfinite().all())
    assert int(session.tally[:, [NONZERO, PREDICTED]].sum()) == 0
    stats = engine.generate("Once", max_new_tokens=4).stats
    assert stats["predicted_sparsity"]["mean"] == 1.0 and stats["activation_sparsity"]["mean"] == 1.0


def test_stats_count_what_is_predicted_and_its_bytes(folder: Path, exact: Engine) -> None:
    engine = prosparse.load(folder, predictor=predictor_of(exact, "low_rank", 0.0))
    stats = engine.generate("Once", max_new_tokens=8).stats
    assert 0 < stats["predicted_sparsity"]["mean"] < 1
    assert len(stats["predicted_sparsity"]["layers"]) == engine.config.layers
    assert exact.generate("Once", max_new_tokens=8).stats["predicted_sparsity"] is None
    every = prosparse.load(folder, predictor=predictor_of(exact, "low_rank"))
    own = sum(ffn.selector.nbytes for _, ffn in every.decoder.blocks)  # type: ignore[attr-defined]
    more = every.generate("Once", max_new_tokens=8).stats["bytes_per_token"]
    assert more - exact.generate("Once", max_new_tokens=8).stats["bytes_per_token"] == own


def test_layers_without_a_predictor_are_exact(folder: Path, exact: Engine) -> None:
    predictor = predictor_of(exact, offset=-math.inf)
    predictor = dataclasses.replace(predictor, layers=(predictor.layers[0], None))
    engine = prosparse.load(folder, mode="predicted", predictor=predictor)
    assert [layer.mode for layer in engine.plan.layers] == ["predicted", "exact"]
    assert engine.plan.mode == "predicted"
    assert [type(ffn).__name__ for _, ffn in engine.decoder.blocks] == ["PredictedFFN", "ExactFFN"]


def test_a_file_in_the_models_folder_is_found(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    with pytest.raises(UserError, match="mode predicted needs a predictor; make one with `prosparse predictor build`"):
        prosparse.load(folder, mode="predicted")
    exact = prosparse.load(folder)
    predictor_of(exact).save(folder / "predictor.safetensors")
    assert prosparse.load(folder).plan.mode == "exact", "a guess is never the default"
    engine = prosparse.load(folder, mode="predicted")
    assert torch.equal(decoded_logits(engine, IDS), decoded_logits(exact, IDS))


def test_audit_counts_what_is_missed(folder: Path, exact: Engine) -> None:
    ffn = exact.decoder.blocks[1][1]
    residual = torch.randn(3, exact.config.hidden)
    for offset, share in ((math.inf, 1.0), (-math.inf, 0.0)):
        predicted = prosparse.load(folder, predictor=predictor_of(exact, offset=offset)).decoder.blocks[1][1]
        active, found = predicted.audit(residual)  # type: ignore[attr-defined]
        assert active > 0 and found == share * active
    assert not hasattr(ffn, "audit")


@pytest.mark.parametrize("offset", [math.inf, -math.inf])
def test_an_audit_of_every_second_step_changes_no_token(folder: Path, exact: Engine, offset: float) -> None:
    engine = prosparse.load(folder, predictor=predictor_of(exact, offset=offset), audit=2)
    plain = prosparse.load(folder, predictor=predictor_of(exact, offset=offset))
    ours, theirs = (each.generate("Once upon", max_new_tokens=9) for each in (engine, plain))
    assert ours.token_ids == theirs.token_ids
    assert theirs.stats["audit"] is None
    audit = ours.stats["audit"]
    assert audit["steps"] == 4 and audit["recall"]["mean"] == (1.0 if offset > 0 else 0.0)
    assert len(audit["recall"]["layers"]) == engine.config.layers


def test_audit_wants_a_predictor_and_a_step(folder: Path, exact: Engine) -> None:
    with pytest.raises(UserError, match="audit needs mode predicted, but the mode is exact"):
        prosparse.load(folder, audit=4)
    for bad in (0, -1, True, 2.0):
        with pytest.raises(UserError, match="audit must be a whole number of at least 1"):
            prosparse.load(folder, predictor=predictor_of(exact), audit=bad)  # type: ignore[arg-type]


def test_a_predictor_comes_back_from_its_file(tmp_path: Path, exact: Engine) -> None:
    own = low_rank(exact, 0.25, relu=True, un_normed=True)
    predictor = dataclasses.replace(predictor_of(exact, "low_bit_gate"), about={"recall": [0.99]})
    predictor = dataclasses.replace(predictor, layers=(own, None, predictor.layers[1]))
    predictor.save(tmp_path / "p.safetensors")
    back = Predictor.load(tmp_path / "p.safetensors")
    assert (back.model, back.content, back.about, back.kind) == (
        predictor.model,
        predictor.content,
        predictor.about,
        "mixed",
    )
    first, none, third = back.layers
    assert none is None and first is not None and third is not None and first.first and own.first
    assert (first.kind, first.relu, first.un_normed, first.rank) == ("low_rank", True, True, 6)
    assert torch.equal(first.first.codes, own.first.codes) and torch.equal(first.offset, own.offset)
    assert (third.kind, third.rank) == ("low_bit_gate", 0)


def test_refuses_what_does_not_fit(tmp_path: Path, folder: Path, exact: Engine) -> None:
    good = predictor_of(exact)
    wrong = dataclasses.replace
    neurons = exact.config.neurons
    for bad, message in [
        (wrong(good, layers=good.layers[:1]), "has 1 layers, the model 2"),
        (wrong(good, model="other"), "made for model other, but this model's are"),
        (wrong(good, content="other"), "made for weights other, but this model's are"),
        (
            wrong(good, layers=(LayerPredictor("sign_bits", torch.zeros(7)),) * 2),
            f"layer 0 is for 7 neurons, the model has {neurons}",
        ),
    ]:
        with pytest.raises(UserError, match=f"^predictor: .*{message}.*prosparse predictor build"):
            prosparse.load(folder, predictor=bad)
    plan = Plan(fingerprint(exact.config), (LayerPlan("predicted"),) * 2, "a test")
    with pytest.raises(UserError, match="layer 0 is predicted, but there is no predictor for it"):
        prosparse.load(folder, plan=plan)
    with pytest.raises(MissingFileError, match="no such file"):
        prosparse.load(folder, predictor=tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="too short for a safetensors file"):
        prosparse.load(folder, predictor=tmp_path / "bad")
    with pytest.raises(CheckpointError, match="torch.save|PyTorch file"):
        torch.save({"fc1": torch.zeros(3)}, tmp_path / "pickle.pt")
        prosparse.load(folder, predictor=tmp_path / "pickle.pt")


def test_refuses_a_part_that_is_none() -> None:
    with pytest.raises(UserError, match="kind is 'magic'; supported are low_rank, low_bit_gate, sign_bits"):
        LayerPredictor("magic", torch.zeros(3))
    with pytest.raises(
        UserError, match=r"offset must be \[neurons\] float32 without NaN, got \[3\] torch.float32 with NaN"
    ):
        LayerPredictor("sign_bits", torch.full((3,), math.nan))
    with pytest.raises(UserError, match="low_rank needs first"):
        LayerPredictor("low_rank", torch.zeros(3))
    with pytest.raises(UserError, match="sign_bits is made from the gate and takes no matrices"):
        LayerPredictor("sign_bits", torch.zeros(3), relu=True)
