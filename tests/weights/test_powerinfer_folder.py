"""PowerInfer's folders of predictors: their order, their meaning, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prosparse.errors import CheckpointError, MissingFileError, UserError
from prosparse.kernels.weight import in_format
from prosparse.sparsity.selectors import Selector
from prosparse.weights.powerinfer import read_folder, write_folder
from prosparse.weights.predictor import LayerPredictor, Predictor

HIDDEN, NEURONS, RANK = 16, 24, 5
SIZES = {"neurons": NEURONS, "hidden": HIDDEN}
RNG = torch.Generator().manual_seed(0)
NORM = 1 + 0.3 * torch.randn(HIDDEN, generator=RNG)
GATE = in_format(torch.zeros(NEURONS, HIDDEN), "fp32")


def write(folder: Path, layers: int = 2, **files: Any) -> Path:
    """fc1 of layer i is all i + 1, so that the order shows."""
    folder.mkdir(exist_ok=True)
    for i in range(layers):
        matrices = {"fc1.weight": torch.full((RANK, HIDDEN), i + 1.0), "fc2.weight": torch.ones(NEURONS, RANK)}
        torch.save(matrices, folder / f"model_{i}.pt")
    return folder


def low_rank(offset: float = 0.0, **options: bool) -> LayerPredictor:
    first, second = torch.randn(RANK, HIDDEN, generator=RNG), torch.randn(NEURONS, RANK, generator=RNG)
    offsets = torch.full((NEURONS,), offset)
    return LayerPredictor("low_rank", offsets, in_format(first, "fp32"), in_format(second, "fp32"), **options)


def named(own: LayerPredictor, residual: Tensor) -> Tensor:
    x = residual / residual.square().mean(1, keepdim=True).sqrt() * NORM
    return ~(Selector(own, GATE).scores(residual, x) < 0)


def test_layers_are_sorted_as_numbers(tmp_path: Path) -> None:
    read = read_folder(write(tmp_path / "p", 12), layers=12, **SIZES)
    assert [float(own.first.codes[0, 0]) for own in read if own.first is not None] == list(range(1, 13))
    assert all(own.relu and own.un_normed and not bool(own.offset.any()) for own in read)


def test_the_threshold_is_on_the_raw_score(tmp_path: Path) -> None:
    (write(tmp_path / "p") / "config.json").write_text(json.dumps({"sparse_threshold": 0.5}))
    own = read_folder(tmp_path / "p", layers=2, **SIZES, input="normed", hidden_act="none")[0]
    assert own.offset.tolist() == [-0.5] * NEURONS and not own.relu and not own.un_normed
    # its score is RANK times the sum of its input, so the threshold is met by 0.1 in all
    for total, wanted in ((0.1, True), (0.0999, False)):
        x = torch.zeros(1, HIDDEN)
        x[0, 3] = total
        assert bool((~(Selector(own, GATE).scores(x, x) < 0)).all()) == wanted


@pytest.mark.parametrize(
    ("offset", "options"),
    [(0.0, {"relu": True}), (0.0, {"relu": False}), (0.3, {"relu": True, "un_normed": True})],
)
def test_what_is_written_names_the_same_neurons(tmp_path: Path, offset: float, options: dict[str, bool]) -> None:
    made = Predictor((low_rank(offset, **options), low_rank(offset, **options)), "m", "c")
    write_folder(tmp_path / "out", made, [NORM, NORM])
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"sparse_threshold": pytest.approx(-offset)}
    back = read_folder(tmp_path / "out", layers=2, **SIZES)
    residual = 7 * torch.randn(400, HIDDEN, generator=RNG)
    for ours, theirs in zip(made.layers, back, strict=True):
        assert ours is not None and theirs.relu and theirs.un_normed
        assert float((named(ours, residual) == named(theirs, residual)).float().mean()) > 0.998  # float16


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: None, "layer 0 has no predictor; PowerInfer needs a low_rank one in every layer"),
        (lambda: LayerPredictor("sign_bits", torch.zeros(NEURONS)), "layer 0 is sign_bits; PowerInfer needs"),
        (lambda: low_rank(0.1), "layer 0 has offsets, for which PowerInfer's format has no place"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, made: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        write_folder(tmp_path / "out", Predictor((made(), low_rank()), "m", "c"), [NORM, NORM])
    assert not (tmp_path / "out").exists()


class Payload:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a predictor was run')",)


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        ({"fc1.weight": torch.ones(RANK, HIDDEN)}, "holds fc1.weight, expected fc1.weight and fc2.weight alone"),
        ([1, 2], "holds list, expected"),
        (Payload(), "never runs code from a model"),
        ({"fc1.weight": torch.ones(RANK, 9), "fc2.weight": torch.ones(NEURONS, RANK)}, "is of another model"),
        ({"fc1.weight": torch.ones(RANK, HIDDEN), "fc2.weight": torch.ones(NEURONS, 4)}, "is of another model"),
        ({"fc1.weight": torch.ones(RANK, HIDDEN), "fc2.weight": torch.ones(9, RANK)}, "is of another model"),
        ({"fc1.weight": torch.ones(RANK), "fc2.weight": torch.ones(NEURONS, RANK)}, "fc1.weight is no dense matrix"),
        ({"fc1.weight": torch.ones(RANK, HIDDEN).to_sparse(), "fc2.weight": torch.ones(NEURONS, RANK)}, "no dense"),
        ({"fc1.weight": torch.ones(RANK, HIDDEN).int(), "fc2.weight": torch.ones(NEURONS, RANK)}, "is torch.int32"),
        ({"fc1.weight": torch.full((RANK, HIDDEN), math.nan), "fc2.weight": torch.ones(NEURONS, RANK)}, "holds NaN"),
    ],
)
def test_bad_files(tmp_path: Path, holds: Any, said: str) -> None:
    torch.save(holds, write(tmp_path / "p") / "model_1.pt")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_folder(tmp_path / "p", layers=2, **SIZES)
    assert "model_1.pt" in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        read_folder(tmp_path / "none", layers=2, **SIZES)
    with pytest.raises(MissingFileError, match="holds no model_0.pt"):
        read_folder(tmp_path, layers=2, **SIZES)
    folder = write(tmp_path / "p", 3)
    with pytest.raises(CheckpointError, match="there are 3 predictors, but the model has 2 layers"):
        read_folder(folder, layers=2, **SIZES)
    with pytest.raises(CheckpointError, match="model_3.pt is missing, but the model has 4 layers"):
        read_folder(folder, layers=4, **SIZES)
    for value in ("NaN", "1e999", '"low"', "true"):
        (folder / "config.json").write_text(f'{{"sparse_threshold": {value}}}')
        with pytest.raises(CheckpointError, match="config.json"):
            read_folder(folder, layers=3, **SIZES)
    with pytest.raises(UserError, match="supported are residual, normed, and relu, none"):
        read_folder(folder, layers=3, **SIZES, input="tokens")


def test_large_numbers_are_scaled_into_float16(tmp_path: Path) -> None:
    own = low_rank(relu=True)
    assert own.first is not None and own.second is not None
    large = LayerPredictor("low_rank", own.offset, in_format(own.first.codes * 1e6, "fp32"), own.second, relu=True)
    write_folder(tmp_path / "out", Predictor((large,), "m", "c"), [NORM])
    back = read_folder(tmp_path / "out", layers=1, **SIZES)[0]
    residual = torch.randn(200, HIDDEN, generator=RNG)
    assert float((named(own, residual) == named(back, residual)).float().mean()) > 0.995
