"""prosparse synth: the folder, the table on stdout, one line for every wrong wish."""

from __future__ import annotations

import json

import pytest

from prosparse.cli import main


def synth(*more):
    return main(["synth", "--shape", "tiny", "--sparsity", "0.8", *more])


def test_writes_a_folder_that_generates_and_prints_asked_beside_measured(tmp_path, capsys):
    assert synth("-o", str(tmp_path / "model")) == 0
    out, err = capsys.readouterr()
    rows = [line.rsplit(maxsplit=2) for line in out.splitlines()]
    assert [row[0] for row in rows[1:]] == ["activation sparsity", "skew", "predictability", "overlap"]
    assert rows[0][1:] == ["asked", "measured"] and rows[1][1] == "80.0%"
    assert float(rows[1][2].rstrip("%")) == pytest.approx(80, abs=2)
    assert "synthetic weights" in err
    assert main(["generate", str(tmp_path / "model"), "--prompt", "Once", "--max-new-tokens", "4"]) == 0


def test_a_cut_is_said_and_json_has_it_all(tmp_path, capsys):
    arguments = ("--layers", "1", "--json", "--predictability", "0.5", "--seed", "4", "--weights", "fp32")
    assert synth("-o", str(tmp_path / "model"), *arguments) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["layers"] == 1 and "1 of 2 layers" in err
    assert document["asked"]["predictability"] == 0.5
    assert document["measured"]["predictability"] == pytest.approx(0.5, abs=0.03)


def test_without_the_check_nothing_is_printed(tmp_path, capsys):
    assert synth("-o", str(tmp_path / "model"), "--no-check") == 0
    assert capsys.readouterr().out == "" and (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sparsity", "1.2"), "activation sparsity must be a number from 0 to 1, got 1.2"),
        (("--overlap", "0.1"), "overlap can be from"),
        (("--shape", "huge"), "'huge' is not known"),
        (("--layers", "3"), "tiny has 2 layers; --layers was 3"),
        (("--weights", "int4"), "a folder is written in"),
    ],
)
def test_wrong_wishes_are_the_users_fault(tmp_path, capsys, arguments, says):
    assert synth("-o", str(tmp_path / "model"), *arguments) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "model").exists()
