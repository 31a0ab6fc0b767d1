"""prosparse predictor from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prosparse.cli import main
from prosparse.cli.predictor_report import parse_size
from prosparse.engine import Engine
from prosparse.errors import UserError
from prosparse.weights.predictor import Predictor


def command(guessable: Path, action: str, *more: str) -> list[str]:
    text = [] if action == "export" else ["--text", str(guessable / "text.txt")]
    if action == "eval":
        text = ["--calibration-text", text[1], "--held-out", text[1], "--predictions", "60"]
    path = [more[0]] if action in ("import", "export") else []
    return ["predictor", action, *path, str(guessable), *text, "--weights", "fp32", *more[len(path) :]]


@pytest.fixture(scope="module")
def made(guessable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "signs.safetensors"
    assert main(command(guessable, "build", "--kind", "sign-bits", "-o", str(path))) == 0
    return path


def test_build(guessable: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.safetensors"
    arguments = command(guessable, "build", "--rank", "4", "--target-kl", "0.01", "--store", "bf16", "-o", str(path))
    assert main(arguments) == 0
    shown, log = capsys.readouterr()
    assert shown.splitlines()[0].split("  ")[0] == "layer" and f"wrote {path}" in log
    assert "KL from exact" in shown and "asked for 0.01" in shown
    assert main(arguments) == 2 and "exists; choose another file, or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "low_rank" and document["calibration_kl"] <= 0.01
    layer = Predictor.load(path).layers[0]
    assert layer is not None and layer.first is not None and layer.first.format == "bf16"


def test_the_made_predictor_runs(guessable: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--predictor", str(made), "--mode", "predicted", "--weights", "fp32", "--max-new-tokens", "4"]
    assert main(["generate", str(guessable), "--prompt", "The quick", *options]) == 0
    assert capsys.readouterr().out


def test_eval_of_predictors(guessable: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "eval.json"
    arguments = command(guessable, "eval", "--predictor", str(made), "--time", "--target-kl", "10", "--json", str(out))
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown.splitlines()[0] and "signs, layer by layer" in shown
    assert "chosen: signs, the fewest bytes with KL at most 10 nats per token" in shown
    document = json.loads(out.read_text())
    assert document["chosen"] == "signs" and document["points"][0]["tokens_per_s"] > 0
    assert main([*command(guessable, "eval", "--predictor", str(made)), "--target-kl", "1e-12", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] is None


def test_eval_of_everything_with_a_plot(guessable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    arguments = command(guessable, "eval", "--plot", str(tmp_path / "curve.svg"))
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name in ("exact", "dense", "low_rank 0.99", "low_bit_gate 0.999", "sign_bits 0.99", "hot 0.9", "oracle"):
        assert any(line.startswith(f"{name}  ") for line in shown.splitlines()), name
    assert (tmp_path / "curve.svg").exists()
    assert main([*arguments[:-1], str(tmp_path / "curve.bmp")]) == 2


def test_train_export_and_import(guessable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, folder, back = (str(tmp_path / name) for name in ("t.safetensors", "powerinfer", "back.safetensors"))
    options = ["--rank", "8", "--epochs", "1", "--powerinfer", "--disk", "10MB", "--store", "fp32"]
    assert main(command(guessable, "train", *options, "-o", trained)) == 0
    assert (tmp_path / "t.safetensors.work" / "layer_1.safetensors").exists()
    assert main(command(guessable, "export", trained, "-o", folder)) == 0
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "model_0.pt", "model_1.pt"]
    assert main(command(guessable, "export", trained, "-o", folder)) == 2
    capsys.readouterr()
    assert main(command(guessable, "import", folder, "-o", back)) == 0
    assert "recall" in capsys.readouterr().out
    own = Predictor.load(back).layers[0]
    assert own is not None and own.relu and own.un_normed and own.rank == 8


def test_import_of_what_is_not_this_models(
    guessable: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, config = torch.Generator().manual_seed(0), engine.config
    for layer in range(2):
        matrices = {
            "fc1.weight": torch.randn(8, config.hidden, generator=rng),
            "fc2.weight": torch.randn(config.neurons, 8, generator=rng),
        }
        torch.save(matrices, tmp_path / f"model_{layer}.pt")
    arguments = command(guessable, "import", str(tmp_path), "-o", str(tmp_path / "p.safetensors"))
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert (
        "so it is hardly this model's; try --input normed, --hidden-act none (Deja Vu's have none), or --force" in said
    )
    assert not (tmp_path / "p.safetensors").exists()
    assert main([*arguments, "--force", "--hidden-act", "none", "--input", "normed"]) == 0
    own = Predictor.load(tmp_path / "p.safetensors").layers[0]
    assert own is not None and not own.relu and not own.un_normed


def test_eval_of_a_recording_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "recorded.npy", np.random.default_rng(0).random((64, 32)) < 0.1)
    arguments = ["predictor", "eval", "--recording", str(tmp_path / "recorded.npy")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "64 tokens of 32 neurons" in shown and "previous" in shown and "union" in shown
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["neurons"] == 32


def test_sizes() -> None:
    assert [parse_size(text) for text in ("5", "1KB", "1.5MiB", "2 GB")] == [5, 1000, 3 << 19, 2 * 10**9]
    with pytest.raises(UserError, match="a size like 500MB or 20GiB, got '3 TB'"):
        parse_size("3 TB")


def test_help_and_no_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictor"]) == 2 and "required: ACTION" in capsys.readouterr().err
    assert main(["predictor", "build", "--tarket-recall", "0.9", "-o", "x"]) == 2
    assert "did you mean --target-recall?" in capsys.readouterr().err
