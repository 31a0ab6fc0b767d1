"""prosparse perplexity from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_engine import make_model

from prosparse.cli import main
from prosparse.engine import load
from prosparse.study import perplexity


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny", max_position=64)
    (folder / "text.txt").write_text("All happy families are alike; " * 30)
    return folder


def test_json_is_the_report(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    arguments = [str(folder), "--text", str(folder / "text.txt"), "--weights", "bf16", "--mode", "exact"]
    assert main(["perplexity", *arguments, "--window", "32", "--predictions", "300", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    engine, baseline = load(folder, "exact", "bf16"), load(folder, "dense", "fp32")
    expected = perplexity(engine, baseline, folder / "text.txt", window=32, predictions=300)
    assert document == json.loads(json.dumps(expected.to_dict()))


def test_summary_says_what_was_done(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["perplexity", str(folder), "--text", str(folder / "text.txt"), "--weights", "fp32"]) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert "decode steps, 16 tokens per step; dense fp32 with prefill" in lines["computed by"]
    assert lines["exact fp32"].split()[:2] == ["perplexity", lines["dense fp32"].split()[1]]
    assert "95 %" in lines["KL divergence"] and "activation sparsity" in lines
    assert err.count("mode ") == 1  # in fp32 one engine is both


def test_formats_are_those_of_the_engine_under_test(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    arguments = [str(folder), "--text", str(folder / "text.txt"), "--window", "32", "--predictions", "200"]
    assert main(["perplexity", *arguments, "--weights", "int4", "--lm-head", "int8"]) == 0
    out, err = capsys.readouterr()
    assert "exact int4 (lm_head int8)  perplexity" in out
    assert [line.split(": ")[2].split(",")[0] for line in err.splitlines()] == [
        "int4 (lm_head int8) weights",
        "fp32 weights",
    ]


def test_a_converted_folder_is_compared_with_its_source(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    arguments = ["--text", str(folder / "text.txt"), "--window", "32", "--predictions", "200", "--json"]
    assert main(["convert", str(folder), "-o", str(tmp_path / "made"), "--weights", "int4", "--lm-head", "int8"]) == 0
    assert main(["perplexity", str(tmp_path / "made"), "--baseline", str(folder), *arguments]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(["perplexity", str(folder), "--weights", "int4", "--lm-head", "int8", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == made


def test_bad_text_is_status_2(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["perplexity", str(folder), "--text", str(folder / "absent.txt"), "--weights", "fp32"]) == 2
    assert "absent.txt: cannot read the text" in capsys.readouterr().err
