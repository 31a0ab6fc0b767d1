"""prosparse plan: the line, the table, the file, and one line for every wrong wish."""

from __future__ import annotations

import json

import pytest
import torch

from prosparse.cli import main
from prosparse.config.shapes import shape
from prosparse.engine import profiling
from prosparse.engine.load import EMBEDDED_MODEL
from prosparse.engine.source import open_source
from prosparse.engine.windows import CALIBRATION
from prosparse.plan import Plan, fingerprint
from prosparse.study import placing
from prosparse.weights.neuron_profile import Profile

SEVEN = ("plan", "--shape", "prosparse-llama-2-7b", "--sparsity", "0.89", "--context", "512", "--machine", "8gb-pcie4")


def test_one_line_and_a_file_that_is_a_plan(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main([*SEVEN, "--budget", "7GiB", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "within 7.00 GiB" in out and "expected" in out and f"wrote {path}" in err
    plan = Plan.load(path)
    plan.check_fits(shape("prosparse-llama-2-7b"))
    assert plan.mode == "exact" and plan.placement.gpu_bytes <= 7 * 2**30
    assert main([*SEVEN, "-o", str(path)]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*SEVEN, "-o", str(path), "--overwrite"]) == 0


def test_explains_for_a_person(capsys):
    assert main([*SEVEN, "--budget", "8GiB", "--explain", "--simulate"]) == 0
    out = capsys.readouterr().out
    for part in ("attention", "gate", "up and down", "lm_head", "device context", "embedding", "together"):
        assert f"\n{part} " in out
    assert "RTX 3070" in out and "synthetic: activation sparsity 0.89" in out and "cover " in out
    assert "layers 1 to 31  on both: gate " in out or "layers 0 to 31  on both: gate " in out
    speeds = {line[:40].strip(): line.split()[-2:] for line in out.splitlines()[-4:]}
    assert list(speeds) == [
        "this plan",
        "layer split, 16 of 32 on the GPU",
        "all on the CPU",
        "bound: every byte at full speed",
    ]
    mine, split, cpu = (float(speed[1]) for speed in list(speeds.values())[:3])
    assert mine > 2 * split > 2 * cpu


def test_json_has_plan_and_explanation(capsys):
    assert main([*SEVEN, "--mode", "predicted", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Plan.from_json(json.dumps(document["plan"])).mode == "predicted"
    explanation = document["explanation"]
    assert sum(explanation["gpu"].values()) == document["plan"]["placement"]["gpu_bytes"]
    assert 0.3 < explanation["covered"] < 0.8
    speeds = [way["tokens_per_s"] for way in explanation["ways"]]
    assert speeds[3] > speeds[0] > speeds[1] > speeds[2]


def profile_of_embedded(**changed):
    config = open_source(EMBEDDED_MODEL, None).config
    counts = torch.arange(config.neurons).repeat(config.layers, 1)
    facts = {"model": fingerprint(config), "content": "", "text": "by hand"} | changed
    return Profile(counts, config.neurons, **facts)


def test_a_model_with_its_profile(tmp_path, capsys):
    path = tmp_path / "p.safetensors"
    profile_of_embedded().save(path)
    assert main(["plan", "--profile", str(path), "--machine", "8gb-pcie4", "--context", "256"]) == 0
    assert "expected" in capsys.readouterr().out
    profile_of_embedded(content="0123456789abcdef").save(path)
    assert main(["plan", "--profile", str(path), "--machine", "8gb-pcie4"]) == 2
    assert "profile: made for weights 0123456789abcdef" in capsys.readouterr().err


def test_a_model_that_is_not_split_is_refused_before_it_is_counted(tmp_path, capsys):
    folder = str(tmp_path / "opt")
    assert main(["synth", "--shape", "tiny-opt", "--sparsity", "0.8", "--no-check", "-o", folder]) == 0
    capsys.readouterr()
    assert main(["plan", folder, "--machine", "8gb-pcie4"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "opt models with FFNs without up projection are not split" in err


def test_a_model_without_one_is_profiled_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profiling, "TOKENS", 64)
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path))
    assert main(["plan", "--machine", "24gb-pcie4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["frequencies"] == CALIBRATION.name
    monkeypatch.setattr(placing, "load", None)  # what is kept is taken
    subject = placing.of_model(None)
    assert subject.profile.content and subject.weights == "bf16"
    subject.profile.check_fits(fingerprint(subject.config), subject.profile.content, 6, 1536)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--budget", "lots"), "--budget: 'lots' is no size"),
        (("--budget", "600MiB"), "pass at least"),
        (("--machine", "8gb"), "neither a file nor one of"),
        (("--context", "99999"), "context must be from 2 to 4096"),
        (("--context", "1"), "context must be from 2 to 4096"),
        (("--mode", "quick"), "mode is 'quick'"),
        (("--weights", "int3"), "weights is 'int3'"),
        (("--sparsity", "2"), "activation sparsity must be a number from 0 to 1"),
        (("--simulate",), "pass one of them"),
        (("--profile", "none.safetensors", "--shape", "tiny"), "--sparsity belongs to --shape without --profile"),
        (("--shape", "huge"), "'huge' is not known"),
        (("model",), "a model and --shape were given"),
    ],
)
def test_wrong_wishes_are_the_users_fault(capsys, arguments, says):
    assert main([*SEVEN, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and len(err.splitlines()) == 1


def test_without_a_gpu_a_machine_has_to_be_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", "--shape", "tiny"]) == 1
    assert "pass --machine with a preset (8gb-pcie4" in capsys.readouterr().err
