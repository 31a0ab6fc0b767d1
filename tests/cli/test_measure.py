"""prosparse measure and prosparse profile from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hand_made import LAYERS, write_hand_made

from prosparse.cli import main
from prosparse.weights.neuron_profile import Profile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_hand_made(tmp_path_factory.mktemp("models") / "made")
    (folder / "text.txt").write_text("All happy families are alike; " * 30)
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    text = ["--text", str(folder / "text.txt"), "--window", "10"]
    return ["measure", str(folder), *text, "--weights", "fp32", "--no-plots", *more]


def test_a_folder_of_results_and_a_summary(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    passes = ["--thresholds", "0,0.5", "--cett", "0.1", "--cett-ppl", "1", "--sample", "40"]
    assert main(arguments(folder, "-o", str(out), "--second-text", str(folder / "config.json"), *passes)) == 0
    shown, log = capsys.readouterr()
    document = json.loads((out / "measure.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["counts.safetensors", "measure.html", "measure.json"]
    assert document["model"]["name"] == "made" and f"open {out / 'measure.html'}" in log
    lines = dict(line.split("  ", 1) for line in shown.splitlines())
    assert lines["activation sparsity"].strip().startswith(f"{document['mean']['activation_sparsity']:.2%}")
    assert {"below 0.5", "CETT 0.1", "CETT-PPL-1%", "second text"} <= lines.keys()
    assert main(arguments(folder, "-o", str(out))) == 2
    assert "holds a measurement; choose another folder, or --overwrite to replace it" in capsys.readouterr().err
    assert main(arguments(folder, "-o", str(out), "--overwrite", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["stability"] is None


def test_plots_come_along(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [word for word in arguments(folder, "-o", str(tmp_path / "out")) if word != "--no-plots"]
    assert main(command) == 0
    assert (tmp_path / "out" / "plots" / "cdf.png").exists() and (tmp_path / "out" / "plots" / "cdf.svg").exists()


def test_shares_merge_to_the_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = [str(tmp_path / name) for name in ("a", "b")]
    for number, share in enumerate(shares, 1):
        assert main(arguments(folder, "-o", share, "--share", f"{number}/2")) == 0
    assert main(arguments(folder, "-o", str(tmp_path / "one"))) == 0
    assert main(["measure", "--merge", *shares, "--no-plots", "-o", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "measure.json").read_bytes() == (tmp_path / "one" / "measure.json").read_bytes()
    capsys.readouterr()
    assert main(["measure", "--merge", shares[0]]) == 2
    assert "of 2 shares these are missing: 2" in capsys.readouterr().err


def test_transformers_runs_it_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "--json")) == 0
    ours = json.loads(capsys.readouterr().out)
    assert main(arguments(folder, "--json", "--backend", "transformers")) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert ours["layers"] == theirs["layers"] and ours["text"] == theirs["text"]
    assert main(arguments(folder, "--backend", "transformers", "--mode", "exact")) == 2
    assert "--mode does not go with --backend transformers" in capsys.readouterr().err
    absent = ["measure", str(folder / "absent"), "--backend", "transformers"]
    assert main(absent) == 2
    assert "transformers cannot load it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "3/2"], "--share must be K/N with K from 1 to N, for example 2/8, got '3/2'"),
        (["--share", "half"], "--share must be K/N"),
        (["--cett", "0.1;0.2"], "--cett takes numbers with commas between them"),
        (["--window", "1000"], "window must be from 2 to the context of 64 tokens, got 1000"),
        (["--text", "absent.txt"], "absent.txt: cannot read the text"),
    ],
)
def test_wrong_options_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*arguments(folder, "-o", str(tmp_path / "out")), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_profile_writes_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.safetensors"
    command = ["profile", str(folder), "--text", str(folder / "text.txt"), "--window", "10", "-o", str(path)]
    assert main(command) == 0
    found = Profile.load(path)
    assert found.counts.shape == (2, 4) and found.tokens == 1000 and found.text == "text.txt"
    assert found.counts[0, 0] == 100 and capsys.readouterr().out.startswith("2 layers of 4 neurons, counted over 1000")
    assert main(command) == 2
    assert "exists; choose another file, or --overwrite" in capsys.readouterr().err


def test_profile_takes_over_powerinfer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = tmp_path / "activation", tmp_path / "p.safetensors"
    source.mkdir()
    for layer in range(len(LAYERS)):
        torch.save(torch.tensor([1, 2, 3, layer]), source / f"activation_{layer}.pt")
    assert main(["profile", str(folder), "--from-powerinfer", str(source), "-o", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = Profile.load(path)
    assert found.counts.tolist() == [[1, 2, 3, 0], [1, 2, 3, 1]]
    assert document["model"] == found.model != "" and document["tokens"] == 0
    torch.save(torch.tensor([1, 2, 3]), source / "activation_0.pt")
    torch.save(torch.tensor([1, 2, 3]), source / "activation_1.pt")
    assert main(["profile", str(folder), "--from-powerinfer", str(source), "-o", str(path), "--overwrite"]) == 2
    assert "has 2 layers of 3 neurons, the model 2 of 4" in capsys.readouterr().err
