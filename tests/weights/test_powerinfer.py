"""PowerInfer's predictors and its lists of GPU neurons, as files of its own tools have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_writer import Stored, model_keys, model_tensors, stored, write_gguf, write_model
from tiny_engine import make_model
from torch import Tensor

from prosparse.errors import CheckpointError, ConfigError
from prosparse.weights.gguf import predictor_threshold, read_gguf, read_gpu_index, read_predictors

RANK = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("powerinfer") / "model")


def matrices(layers: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    sizes = {"fc1": (RANK, 64), "fc2": (96, RANK)}
    return {f"blk.{i}.{name}.weight": torch.randn(size, generator=rng) for i in range(layers)
            for name, size in sizes.items()}  # fmt: skip


def write_with(path: Path, folder: Path, extra: dict[str, Tensor], kind: str = "F32", **keys: float) -> Path:
    named = {name.replace("_", ".", 1): item for name, item in keys.items()}
    found = {name: stored(tensor, "F32") for name, tensor in model_tensors(folder).items()}
    found |= {name: stored(tensor, kind) for name, tensor in extra.items()}
    return write_gguf(path, model_keys(folder) | named, found, b"PWRI")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_predictors_in_order_of_layers(kind: str, folder: Path, tmp_path: Path) -> None:
    given = matrices()
    path = write_with(tmp_path / "x.gguf", folder, given, kind, powerinfer_sparse_threshold=-0.5)
    assert predictor_threshold(read_gguf(path)) == -0.5
    for layer, found in enumerate(read_predictors(path)):
        assert found.layer == layer and found.fc1.dtype == (torch.float16 if kind == "F16" else torch.float32)
        for name, matrix in (("fc1", found.fc1), ("fc2", found.fc2)):
            expected = given[f"blk.{layer}.{name}.weight"]
            bound = {"F32": 0, "F16": 2e-3, "Q8_0": 0.03}[kind]
            assert matrix.shape == expected.shape and float((matrix - expected).abs().max()) <= bound
    assert layer == 1


def test_the_model_runs_beside_its_predictors(folder: Path, tmp_path: Path) -> None:
    import prosparse

    engine = prosparse.load(write_with(tmp_path / "x.powerinfer.gguf", folder, matrices()))
    assert engine.plan.mode == "exact" and len(engine.generate("ab", max_new_tokens=3).token_ids) == 3


def test_predictors_of_a_model_that_does_not_run_from_gguf(tmp_path: Path) -> None:
    keys = {"general.architecture": "falcon", "falcon.block_count": 2, "falcon.embedding_length": 64,
            "falcon.feed_forward_length": 96}  # fmt: skip
    found = {name: stored(tensor, "F16") for name, tensor in matrices().items()}
    path = write_gguf(tmp_path / "x.gguf", keys, found, b"PWRI")
    assert [predictor.layer for predictor in read_predictors(path)] == [0, 1]


def test_a_file_without_predictors(folder: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "x.gguf", folder, powerinfer=True)
    assert list(read_predictors(path)) == [] and predictor_threshold(read_gguf(path)) == 0.0


def test_says_which_predictor_is_wrong(folder: Path, tmp_path: Path) -> None:
    def attempt(changes: dict[str, Tensor | None], **keys: float) -> None:
        given = {name: tensor for name, tensor in (matrices() | changes).items() if tensor is not None}
        path = write_with(tmp_path / "x.gguf", folder, given, **keys)
        predictor_threshold(read_gguf(path))
        list(read_predictors(path))

    with pytest.raises(CheckpointError, match="has 3 predictor matrices, expected fc1 and fc2 of 2 layers"):
        attempt({"blk.1.fc2.weight": None})
    with pytest.raises(CheckpointError, match=r"blk.1.fc1.weight is \[32, 60\] and blk.1.fc2.weight \[96, 32\], exp"):
        attempt({"blk.1.fc1.weight": torch.zeros(RANK, 60)})
    with pytest.raises(CheckpointError, match=r"\[96, 31\], expected \[rank, 64\] and \[96, rank\]"):
        attempt({"blk.0.fc2.weight": torch.zeros(96, 31)})
    with pytest.raises(CheckpointError, match="blk.0.fc2.weight holds weights that are NaN"):
        attempt({"blk.0.fc2.weight": torch.full((96, RANK), float("nan"))})
    with pytest.raises(ConfigError, match="powerinfer.sparse_threshold must be a finite number, got nan"):
        attempt({}, powerinfer_sparse_threshold=float("nan"))


def index_tensors(chosen: list[list[int]], neurons: int = 8) -> dict[str, Stored]:
    found = {}
    for layer, ids in enumerate(chosen):
        mask = torch.zeros(neurons, dtype=torch.int32)
        mask[ids] = 1
        found[f"blk.{layer}.gpu_idx"] = stored(mask, "I32")
        found[f"blk.{layer}.gpu_bucket"] = stored(torch.tensor(sorted(ids), dtype=torch.int32), "I32")
    return found


INDEX_KEYS = {"general.architecture": "generic.gpu_index", "generic.gpu_index.block_count": 2,
              "split.vram_capacity": 2**33}  # fmt: skip


def test_gpu_neurons_come_first(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gpuidx", INDEX_KEYS, index_tensors([[6, 1, 3], []]), b"PWRI")
    index = read_gpu_index(path)
    assert [order.tolist() for order in index.order] == [[1, 3, 6, 0, 2, 4, 5, 7], list(range(8))]
    assert (index.on_gpu, index.vram_bytes) == ([3, 0], 2**33)


def test_says_what_is_wrong_with_an_index(folder: Path, tmp_path: Path) -> None:
    def attempt(tensors: dict[str, Stored], **keys: object) -> None:
        read_gpu_index(write_gguf(tmp_path / "x.gpuidx", INDEX_KEYS | keys, tensors, b"PWRI"))

    good = index_tensors([[6, 1, 3], [2]])
    attempt(good)
    with pytest.raises(CheckpointError, match="has lists of 1 layers, expected 2"):
        attempt(index_tensors([[1]]))
    with pytest.raises(CheckpointError, match="has no tensor blk.1.gpu_bucket"):
        attempt({name: tensor for name, tensor in good.items() if name != "blk.1.gpu_bucket"})
    with pytest.raises(CheckpointError, match="blk.0.gpu_bucket must list where blk.0.gpu_idx is 1"):
        attempt(good | {"blk.0.gpu_bucket": stored(torch.tensor([1, 3, 99], dtype=torch.int32), "I32")})
    with pytest.raises(CheckpointError, match="blk.0.gpu_bucket must list"):
        attempt(good | {"blk.0.gpu_idx": stored(torch.full((8,), 2, dtype=torch.int32), "I32")})
    with pytest.raises(CheckpointError, match=r"blk.1.gpu_idx is \[2, 4\] F32, expected a list of I32"):
        attempt(good | {"blk.1.gpu_idx": stored(torch.zeros(2, 4), "F32")})
    with pytest.raises(ConfigError, match="'generic.gpu_index': this is a model"):
        read_gpu_index(write_model(tmp_path / "x.gguf", folder))
    with pytest.raises(CheckpointError, match="PowerInfer's list of GPU neurons, not a model"):
        import prosparse

        prosparse.load(write_gguf(tmp_path / "y.gguf", INDEX_KEYS, good, b"PWRI"))
