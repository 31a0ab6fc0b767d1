"""Training: it gains, keeps what is done, goes on after a kill, and makes what PowerInfer can read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prosparse.engine import Engine
from prosparse.errors import UserError
from prosparse.kernels.activation import Activation
from prosparse.kernels.weight import in_format
from prosparse.sparsity import ExactFFN
from prosparse.study.predictors import build, export_powerinfer, import_powerinfer, train
from prosparse.study.predictors.judge import judge
from prosparse.study.predictors.mlp import Recipe, start, train_layer
from prosparse.study.predictors.record import Rows, bytes_per_token, record
from prosparse.study.windows import cut, read_text
from prosparse.weights.predictor import Predictor

SMALL: dict[str, Any] = {"hidden_act": "relu", "rank": 8, "epochs": 3, "weights": "fp32", "target_recall": 0.95}


class Killed(Exception):
    """In place of SIGKILL."""


def same(one: Predictor, other: Predictor) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(
        a is not None and b is not None and a.offset.equal(b.offset) and a.second.codes.equal(b.second.codes)  # type: ignore[union-attr]
        for a, b in pairs
    )


def named_share(made: Predictor) -> float:
    return sum(1 - row["predicted_sparsity"] for row in made.about["layers"])


def test_a_recording_is_what_the_model_did(engine: Engine, tmp_path: Path) -> None:
    windows = torch.randint(3, 90, (5, 20), generator=torch.Generator().manual_seed(0))
    rows = record(engine, windows, [1], tmp_path / "rows")[1]
    assert rows.inputs.shape == (100, engine.config.hidden) and rows.bits.shape == (100, 20)
    seen: list[torch.Tensor] = []

    def view(layer: int, residual: torch.Tensor, x: torch.Tensor, value: torch.Tensor, h: torch.Tensor) -> None:
        if layer == 1:
            seen.append(torch.cat([x.half().float(), (h != 0).float()], 1))

    from prosparse.study.predictors.calibration import read

    read(engine, windows, view)
    x, active = rows.take(torch.tensor([7, 3, 99]), torch.device("cpu"))
    assert torch.cat([x, active.float()], 1).equal(torch.cat(seen)[[3, 7, 99]])  # in the order of the disk


def test_a_killed_recording_goes_on(engine: Engine, tmp_path: Path) -> None:
    windows = torch.randint(3, 90, (30, 8), generator=torch.Generator().manual_seed(0))
    read_again: list[int] = []

    def die(what: str, done: int, total: int) -> None:
        read_again.append(done)
        if done == 20 * 8 and len(read_again) == 20:
            raise Killed

    with pytest.raises(Killed):
        record(engine, windows, [0, 1], tmp_path / "cut", die)
    rows = record(engine, windows, [0, 1], tmp_path / "cut", die)
    assert read_again[20] == 17 * 8  # 16 windows were noted
    whole = record(engine, windows, [0, 1], tmp_path / "whole")
    for layer in (0, 1):
        assert (rows[layer].inputs == whole[layer].inputs).all() and (rows[layer].bits == whole[layer].bits).all()
    other = record(engine, windows[:5], [0], tmp_path / "cut")  # another recording begins anew
    assert other[0].inputs.shape[0] == 40


def test_training_names_fewer_neurons_than_it_began_with() -> None:
    """Neurons that open along both ends of a direction, which no linear guess can tell from those that do not."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=rng)
    active = x.abs() > 1.5
    rows = Rows(x.half().numpy(), np.packbits(active.numpy(), axis=1), 8)
    fit, check, scale = torch.arange(1600), torch.arange(1600, 2000), torch.ones(8)
    recipe = Recipe(0.95, epochs=6, batch=32, lr=3e-2)
    one, weight = torch.ones(8), in_format(torch.eye(8), "fp32")
    ffn = ExactFFN(one, 1e-5, weight, weight, weight, Activation("fatrelu", 1.5), 1.0)
    seen: list[int] = []
    begun = train_layer(start(ffn, rows, fit, 16, 1.5, recipe), rows, fit, check, scale, replace(recipe, epochs=0))
    net = train_layer(
        start(ffn, rows, fit, 16, 1.5, recipe), rows, fit, check, scale, recipe, lambda d, _: seen.append(d)
    )
    before, after = (own.curve.predicted(own.curve.margin(0.95)) for own in (begun, net))
    assert after < 0.7 * before
    assert net.curve.recall(net.curve.margin(0.95)) >= 0.95 and seen[0] == 1


def test_without_relu_it_starts_as_good_as_what_needs_no_training(engine: Engine, text: Path, tmp_path: Path) -> None:
    made = train(engine, tmp_path / "work", text=text, **SMALL | {"rank": 4, "epochs": 0, "hidden_act": "none"})
    assert not any(own.relu for own in made.layers if own is not None)
    plain = build(engine, rank=4, weights="fp32", target_recall=0.95, text=text)
    assert named_share(made) == pytest.approx(named_share(plain), abs=0.1)


@pytest.mark.parametrize("when", ["recording", "layer 0, rank 8", "layer 1, rank 8"])
def test_a_killed_training_goes_on_to_the_same_result(engine: Engine, text: Path, tmp_path: Path, when: str) -> None:
    def die(what: str, done: int, total: int) -> None:
        if what == when and 2 * done >= total:
            raise Killed

    with pytest.raises(Killed):
        train(engine, tmp_path / "cut", text=text, progress=die, **SMALL)
    seen: list[str] = []
    made = train(engine, tmp_path / "cut", text=text, progress=lambda what, *_: seen.append(what), **SMALL)
    assert same(made, train(engine, tmp_path / "whole", text=text, **SMALL))
    assert ("layer 0, rank 8" in seen) == (when != "layer 1, rank 8")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "layer_0.safetensors", "layer_1.safetensors", "settings.json",
    ]  # fmt: skip


def test_little_disk_takes_layers_one_by_one(engine: Engine, text: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def watch(what: str, done: int, total: int) -> None:
        seen.append(what)
        if what == "recording":
            used = sum(path.stat().st_size for path in (tmp_path / "little" / "rows").glob("*.npy"))
            assert used <= little + 1000

    whole = train(engine, tmp_path / "whole", text=text, **SMALL)
    tokens = int(whole.about["tokens"])
    little = bytes_per_token(engine.config.hidden, engine.config.neurons) * tokens
    made = train(engine, tmp_path / "little", text=text, disk=little, progress=watch, **SMALL)
    assert same(made, whole)
    assert seen.index("layer 0, rank 8") < len(seen) - 1 - seen[::-1].index("recording") < seen.index("layer 1, rank 8")
    with pytest.raises(UserError, match="recording one layer takes .* raise it or take fewer --tokens"):
        train(engine, tmp_path / "none", text=text, disk=little - 1, **SMALL)


def test_other_settings_do_not_go_on_with_this_work(engine: Engine, text: Path, tmp_path: Path) -> None:
    train(engine, tmp_path / "work", text=text, **SMALL | {"epochs": 0})
    with pytest.raises(UserError, match="holds a training with another epochs; remove it"):
        train(engine, tmp_path / "work", text=text, **SMALL | {"epochs": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(UserError, match="is not empty and holds no training"):
        train(engine, tmp_path / "mine", text=text, **SMALL)


def test_rank_by_bytes(engine: Engine, text: Path, tmp_path: Path) -> None:
    ranks: set[str] = set()
    options = SMALL | {"rank": "auto", "epochs": 1}
    made = train(engine, tmp_path / "work", text=text, progress=lambda what, *_: ranks.add(what), **options)
    assert {"layer 0, rank 32", "layer 1, rank 32"} <= ranks
    assert all(row["rank"] in (8, 32) for row in made.about["layers"])  # a gate of rank 4, each direction twice


def test_powerinfer_reads_what_is_trained_for_it(engine: Engine, text: Path, tmp_path: Path) -> None:
    made = train(engine, tmp_path / "work", text=text, powerinfer=True, **SMALL)
    assert all(own is not None and not bool(own.offset.any()) and own.relu for own in made.layers)
    export_powerinfer(engine, made, tmp_path / "out")
    back = import_powerinfer(engine, tmp_path / "out", text=text)
    windows = cut(read_text(text), engine.tokenizer, 50, 200)
    ours, theirs = judge(engine, {"ours": made, "theirs": back}, windows)
    assert ours.recall is not None and ours.recall > 0.85
    assert theirs.recall == pytest.approx(ours.recall, abs=5e-3)  # float16
    assert theirs.predicted_sparsity == pytest.approx(ours.predicted_sparsity, abs=5e-3)
    offsets = build(engine, rank=4, text=text)
    with pytest.raises(UserError, match="has offsets, for which PowerInfer's format has no place"):
        export_powerinfer(engine, offsets, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_wrong_options(engine: Engine, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hidden_act must be relu, or none without powerinfer, got 'tanh'"):
        train(engine, tmp_path / "work", text=text, hidden_act="tanh")
    with pytest.raises(UserError, match="rank must be auto or from 1"):
        train(engine, tmp_path / "work", text=text, rank=10**6)
