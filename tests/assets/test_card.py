"""The model cards tell the truth: measured again, independently of prosparse, and the tables say what was measured."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import measure_card
import pytest

from prosparse.cli import main

HERE = Path(__file__).parent
MODELS = {
    "relu-llama-14m": HERE.parents[1] / "prosparse" / "assets" / "relu-llama-14m",
    "relu-llama-1.5m": HERE / "relu-llama-1.5m",
}
TEXT = measure_card.TEXT
# Half a unit of the last place that a card prints, plus as much for a matrix product summed in another order.
LAST_PLACE = 1e-4
# One margin decides for a whole layer, and it is the margin of a single calibration neuron: rounding may pick another.
PREDICTOR = 1e-3


def read_card(name: str) -> dict:
    return json.loads((MODELS[name] / "card.json").read_text(encoding="utf-8"))


def table_rows(readme: str, header: str) -> list[list[float]]:
    """The numbers of the table whose header line starts with `header`, without the first column."""
    lines = readme.split(f"\n{header}", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([float(cell) for cell in line.strip("|").split("|")[1:]])
    return rows


@pytest.mark.parametrize("name", [pytest.param("relu-llama-14m", marks=pytest.mark.slow), "relu-llama-1.5m"])
def test_measuring_the_sample_again_gives_the_numbers_of_the_card(name: str) -> None:
    card = read_card(name)["sample"]
    texts = (TEXT / "held_out.txt.xz", TEXT / "calibration.txt.xz")
    measured = measure_card.measure(MODELS[name], measure_card.SAMPLE, *texts)
    for activation in ("relu", "fatrelu"):
        claimed, found = card.pop(activation), measured.pop(activation)
        # A gate within rounding of the threshold may fall on either side: one such token decides "never".
        assert found.pop("never_active") == pytest.approx(claimed.pop("never_active"), abs=1)
        predictor = found.pop("predictor", {})
        for key, value in claimed.pop("predictor", {}).items():
            assert predictor.pop(key) == pytest.approx(value, abs=PREDICTOR), key
        assert not predictor
        assert list(found) == list(claimed)
        for key in claimed:
            assert found[key] == pytest.approx(claimed[key], abs=LAST_PLACE), f"{activation} {key}"
    assert measured == card


@pytest.mark.parametrize("name", MODELS)
def test_generate_prints_the_samples_of_the_card(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for sample in read_card(name)["generated"]:
        options = [*shlex.split(sample["options"]), "--prompt", sample["prompt"]]
        assert main(["generate", str(MODELS[name]), *options]) == 0
        assert capsys.readouterr().out == sample["text"]
        assert f"--seed {sample['seed']}" in sample["options"]


@pytest.mark.parametrize("name", MODELS)
def test_the_predictor_finds_what_it_was_calibrated_to(name: str) -> None:
    for part in ("sample", "full"):
        predictor = read_card(name)[part]["fatrelu"]["predictor"]
        assert predictor["rank"] == 32
        assert min(predictor["recall"]) > 0.98
        for predicted, active in zip(
            predictor["predicted_sparsity"], read_card(name)[part]["fatrelu"]["activation_sparsity"], strict=True
        ):
            assert 0 < predicted < active


@pytest.mark.parametrize("name", MODELS)
def test_tables_of_the_readme_are_those_of_the_card(name: str) -> None:
    readme = (MODELS[name] / "README.md").read_text()
    card = read_card(name)
    full, sample = card["full"], card["sample"]
    runs = [part[activation] for part in (full, sample) for activation in ("relu", "fatrelu")]
    keys = ("nats_per_token", "bits_per_byte", "mean_activation_sparsity")
    assert table_rows(readme, "| | full text, ReLU |") == [[run[key] for run in runs] for key in keys]
    columns = (
        full["relu"]["activation_sparsity"],
        full["fatrelu"]["activation_sparsity"],
        full["fatrelu"]["share_of_hottest_20_percent"],
        full["fatrelu"]["never_active"],
        full["fatrelu"]["predictor"]["recall"],
        full["fatrelu"]["predictor"]["predicted_sparsity"],
    )
    assert table_rows(readme, "| Layer |") == [list(row) for row in zip(*columns, strict=True)]
    for words in (
        f"windows of {full['window']} tokens",
        f"{full['predictions']} predictions\n({full['bytes_per_token']} bytes per token)",
        f"every {sample['stride']}th window: {sample['predictions']} predictions",
    ):
        assert words in readme


def test_threshold_table_is_the_training_log() -> None:
    folder = MODELS["relu-llama-14m"]
    sweep = json.loads((folder / "metrics.json").read_text())["sweep"]
    rows = table_rows((folder / "README.md").read_text(), "| Threshold |")
    assert rows == [
        [pytest.approx(loss, abs=LAST_PLACE), *layers, pytest.approx(sum(layers) / len(layers), abs=LAST_PLACE)]
        for _, loss, layers in sweep
    ]
