"""Recorded activations: checked, mapped, judged by the yardsticks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prosparse.errors import CheckpointError, MissingFileError
from prosparse.study.predictors import Recording, judge_recording
from prosparse.study.predictors.recording import BLOCK


def write(folder: Path, array: object, name: str = "recorded.npy") -> Path:
    np.save(folder / name, np.asarray(array))
    return folder / name


def test_by_hand(tmp_path: Path) -> None:
    """Four tokens to count on, four to judge: neuron 0 always, 1 and 2 in turn, 3 never."""
    rows = [[1.5, 2, 0, 0], [3, 0, -1, 0]] * 4
    found = judge_recording(Recording(write(tmp_path, rows)))
    points = {point["name"]: point for point in found["points"]}
    assert (found["tokens"], found["neurons"]) == (8, 4)
    assert found["activation_sparsity"] == 0.5 and found["unions"] == {"1": 0.5, "2": 0.75, "4": 0.75}
    assert points["oracle"]["recall"] == points["oracle"]["precision"] == 1.0
    # the first of the second half gets all; the other three find neuron 0 of two
    assert points["previous"]["recall"] == (2 + 3) / 8 and points["previous"]["predicted_sparsity"] == 6 / 16
    assert points["hot 0.5"]["recall"] == 0.5 and points["hot 0.5"]["predicted_sparsity"] == 0.75
    assert points["hot 0.99"]["recall"] == 1.0 and points["hot 0.99"]["predicted_sparsity"] == 0.25


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "bool"])
def test_dtypes_and_blocks(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    active = rng.random((2 * BLOCK + 7, 12)) < 0.25
    recording = Recording(write(tmp_path, active.astype(dtype)))
    assert torch.cat(list(recording.active())).numpy().tolist() == active.tolist()
    found = judge_recording(recording)
    assert found["activation_sparsity"] == pytest.approx(1 - active[BLOCK + 3 :].mean())
    points = {point["name"]: point for point in found["points"]}
    assert points["random 0.5"]["recall"] == pytest.approx(0.5, abs=0.05)


def test_previous_goes_on_from_block_to_block(tmp_path: Path) -> None:
    rows = np.zeros((4 * BLOCK, 3))
    rows[:, 1] = 1
    found = judge_recording(Recording(write(tmp_path, rows)))
    points = {point["name"]: point for point in found["points"]}
    assert points["previous"]["precision"] == 2 * BLOCK / (2 * BLOCK + 2)  # all three for the first token alone


def test_nothing_active(tmp_path: Path) -> None:
    found = judge_recording(Recording(write(tmp_path, np.zeros((10, 5)))))
    assert found["activation_sparsity"] == 1.0 and {point["recall"] for point in found["points"]} == {None}


def test_what_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file; expected activations"):
        Recording(tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(CheckpointError, match="is no .npy file"):
        Recording(tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([[{}, 1], [2, 3]], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="cannot be read as a .npy file of numbers"):
        Recording(tmp_path / "objects.npy")
    np.savez(tmp_path / "several.npz", a=np.zeros((9, 9)))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    for name, array in (("flat", np.zeros(9)), ("deep", np.zeros((9, 9, 9))), ("complex", np.zeros((9, 9), complex))):
        with pytest.raises(CheckpointError, match=r"expected numbers or bools, \[tokens, neurons\]"):
            Recording(write(tmp_path, array, f"{name}.npy"))
    with pytest.raises(CheckpointError, match="holds several arrays"):
        Recording(tmp_path / "several.npy")
    with pytest.raises(CheckpointError, match="too few tokens or neurons"):
        Recording(write(tmp_path, np.zeros((3, 9))))
    cut_off = write(tmp_path, np.zeros((900, 9)))
    cut_off.write_bytes(cut_off.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Recording(cut_off)
    bad = np.ones((9, 4))
    bad[7, 2] = np.nan
    with pytest.raises(CheckpointError, match="token 7 holds NaN or infinity"):
        judge_recording(Recording(write(tmp_path, bad)))
