"""Profiles: what is written is read, what is stale is told, and PowerInfer's folders are read in order."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import write_hand_made
from safetensors.torch import load_file, save_file

import prosparse
from prosparse.engine import load
from prosparse.errors import CheckpointError, MissingFileError, UserError
from prosparse.weights.neuron_profile import Profile, content_key, read_powerinfer

COUNTS = torch.tensor([[8, 5, 3, 0], [3, 3, 3, 2]])


def a_profile(**changed: Any) -> Profile:
    given = {"counts": COUNTS, "tokens": 8, "model": "aaaa", "content": "bbbb", "text": "some.txt"}
    return Profile(**{**given, **changed})


def test_measured_counts_travel_through_the_file(tmp_path: Path) -> None:
    engine = load(write_hand_made(tmp_path / "made"), weights="fp32")
    report = prosparse.measure(engine, [[0, 1, 2, 3], [1, 1, 3, 0]])
    report.profile().save(tmp_path / "p.safetensors")
    found = Profile.load(tmp_path / "p.safetensors")
    assert torch.equal(found.counts, COUNTS) and found.counts.dtype == torch.int64
    assert (found.tokens, found.text) == (8, "token batches")
    assert torch.equal(found.frequency, COUNTS.double() / 8)
    model = report.header["model"]
    found.check_fits(model["fingerprint"], model["content"], 2, 4)
    assert list(load_file(tmp_path / "p.safetensors")) == ["counts"]


def test_content_is_the_same_in_every_weight_format(tmp_path: Path) -> None:
    folder = write_hand_made(tmp_path / "made")
    keys = set()
    for weights in ("fp32", "bf16"):
        engine = load(folder, weights=weights)
        keys.add(prosparse.measure(engine, [[0, 1]]).header["model"]["content"])
    assert len(keys) == 1
    norms = [torch.ones(16), torch.ones(16)]
    assert content_key(norms) != content_key([norms[0], norms[1] + 2**-20])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (("aaaa", "bbbb", 2, 5), "has 2 layers of 4 neurons, the model 2 of 5; it is of another model"),
        (("cccc", "bbbb", 2, 4), "made for model aaaa, but this one is cccc"),
        (("aaaa", "dddd", 2, 4), "made for weights bbbb, but these are dddd"),
    ],
)
def test_another_model_is_told(facts: tuple[str, str, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        a_profile().check_fits(*facts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counts": COUNTS.int()}, r"must be \[layers, neurons\] int64, got \[2, 4\] torch.int32"),
        ({"counts": COUNTS[0]}, r"must be \[layers, neurons\] int64, got \[4\]"),
        ({"counts": COUNTS - 1}, "counts go from -1 to 7, expected 0 to 8 tokens"),
        ({"tokens": 7}, "counts go from 0 to 8, expected 0 to 7 tokens"),
    ],
)
def test_counts_that_are_none(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        a_profile(**changed)


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(MissingFileError, match="no such file"):
        Profile.load(path)
    a_profile().save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut off"):
        Profile.load(path)
    save_file({"counts": COUNTS}, path)
    with pytest.raises(UserError, match="is no profile; make it again with `prosparse profile`"):
        Profile.load(path)
    metadata = {"format": "prosparse.profile", "schema_version": "2", "model": "", "content": "", "text": ""}
    save_file({"counts": COUNTS}, path, {**metadata, "tokens": "8"})
    with pytest.raises(UserError, match="schema_version is '2', expected '1'"):
        Profile.load(path)
    save_file({"counts": COUNTS}, path, {**metadata, "schema_version": "1"})
    with pytest.raises(UserError, match="its metadata lacks tokens"):
        Profile.load(path)
    for tokens in ("-1", "8.0", "9" * 5000):
        save_file({"counts": COUNTS}, path, {**metadata, "schema_version": "1", "tokens": tokens})
        with pytest.raises(UserError, match="its metadata lacks a number of tokens"):
            Profile.load(path)


def test_powerinfer_layers_are_sorted_as_numbers(tmp_path: Path) -> None:
    for layer in range(12):
        counts = torch.tensor([layer, 2 * layer, 7])
        torch.save(counts.float() if layer % 2 else counts.int(), tmp_path / f"activation_{layer}.pt")
    (tmp_path / "config.json").write_text("{}")
    found = read_powerinfer(tmp_path, tokens=100)
    assert found.counts[:, 0].tolist() == list(range(12)) and found.counts.dtype == torch.int64
    assert (found.tokens, found.model) == (100, "")
    found.check_fits("anything", "anything", 12, 3)
    known = found.of_model("aaaa", "bbbb", 12, 3)
    assert (known.model, known.content) == ("aaaa", "bbbb")
    with pytest.raises(UserError, match="does not say how many tokens"):
        _ = read_powerinfer(tmp_path).frequency


def test_powerinfer_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        read_powerinfer(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no activation_0.pt"):
        read_powerinfer(tmp_path)
    for layer in (0, 2):
        torch.save(torch.ones(3), tmp_path / f"activation_{layer}.pt")
    with pytest.raises(MissingFileError, match="activation_1.pt is missing"):
        read_powerinfer(tmp_path)
    path = tmp_path / "activation_1.pt"
    for content, message in (
        (torch.ones(4), r"layers have \[3, 4\] neurons"),
        (torch.ones(3, 3), r"expected the counts of a layer, \[neurons\], got \[3, 3\]"),
        ([1, 2, 3], "expected the counts of a layer, .* got list"),
        (torch.tensor([1.5, 0, 0]), "numbers that are no counts"),
        (torch.tensor([float("nan"), 0, 0]), "numbers that are no counts"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            read_powerinfer(tmp_path)


class Harmful:
    """Would make a file when unpickled the careless way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_powerinfer_files_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "activation_0.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "ran"), protocol=2))
    with pytest.raises(CheckpointError, match="holds more than tensors|cannot be read"):
        read_powerinfer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_hot_neurons_come_first_and_the_order_is_one() -> None:
    counts = torch.tensor([[3, 9, 3, 0], [1, 1, 1, 1]])
    made = a_profile(counts=counts, tokens=9)
    assert made.hot_first(0).tolist() == [1, 0, 2, 3] and made.hot_first(1).tolist() == [0, 1, 2, 3]
    assert made.key == a_profile(counts=counts.clone(), tokens=10).key != a_profile(counts=counts + 1, tokens=10).key
