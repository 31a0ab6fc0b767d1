"""The decode subject: complete rows, honest bytes, and no number without agreement."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from prosparse import machine
from prosparse.bench import check, decode, modes
from prosparse.bench.clock import Timing
from prosparse.bench.decode import compare, compare_model, fit_layers
from prosparse.bench.modes import Run
from prosparse.bench.probe import BUFFER_BYTES
from prosparse.bench.row import KEYS, floor
from prosparse.cli import main
from prosparse.config.shapes import shape
from prosparse.errors import MachineError, UserError
from prosparse.kernels.glu_exact import glu_exact
from prosparse.sparsity import ffn
from prosparse.weights.synthetic import weight_bytes

SHORT = Run(pp=4, tg=4)
SCHEMA = {
    "subject", "model", "shape", "synthetic", "mode", "weights", "device", "threads", "batch", "context",
    "activation_sparsity", "predicted_sparsity", "tokens_per_s", "tpot_ms", "bytes", "bandwidth_gb_s",
    "fraction_of_floor", "dense_ratio", "baseline", "repeat", "machine", "versions", "commit", "date", "command",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("small_probe")


@pytest.fixture(scope="module")
def rows(small_probe):
    return compare("tiny", 0.9, run=SHORT)


def test_rows_are_complete_and_travel_as_json(rows):
    assert SCHEMA <= set(KEYS)
    for row in rows:
        assert tuple(row) == KEYS
        assert json.loads(json.dumps(row)) == row
    dense, exact = rows
    assert (dense["mode"], exact["mode"]) == ("dense", "exact")
    assert dense["dense_ratio"] == 1 and exact["dense_ratio"] > 0
    assert exact["subject"] == "decode" and exact["shape"] == "tiny" and exact["context"] == 8


def test_bytes_are_those_of_the_active_rows(rows):
    dense, exact = rows
    config = shape("tiny")
    assert exact["activation_sparsity"] == dense["activation_sparsity"] == pytest.approx(0.9, abs=0.05)
    skipped = dense["activation_sparsity"] * config.layers * config.neurons * 2 * config.hidden * 2
    assert dense["bytes"] - exact["bytes"] == pytest.approx(skipped, abs=2)
    cache_position = 2 * config.layers * config.kv_heads * config.head_dim * 2
    assert 4 * cache_position < dense["bytes"] - weight_bytes(config, "bf16") <= 8 * cache_position


def test_there_is_no_floor_where_a_cache_may_hold_the_weights(rows):
    assert all(row["fraction_of_floor"] is None and row["bandwidth_gb_s"] > 0 for row in rows)


def test_the_floor_compares_fast_deciles():
    probe, timing = Timing(torch.full((20,), 1000.0).numpy()), Timing(torch.full((20,), 4000.0).numpy())
    keys = floor(2 * 16 * 2**20, BUFFER_BYTES, probe, timing)  # the probe reads 16 MiB in 1 ms
    assert keys["floor_us"] == pytest.approx(2000) and keys["fraction_of_floor"] == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_refuses_to_time_a_wrong_op(monkeypatch, factor):
    monkeypatch.setattr(ffn, "glu_exact", lambda *arguments: glu_exact(*arguments) * factor)
    monkeypatch.setattr(modes, "take_turns", lambda *_, **__: pytest.fail("a red case was timed"))
    with pytest.raises(MachineError, match="layer 0, exact against dense"):
        compare("tiny", 0.9, run=SHORT)


def test_refuses_a_wrong_op_that_is_wrong_alone(monkeypatch):
    monkeypatch.setitem(check.OPS, "exact", _off_by_one_neuron)
    with pytest.raises(MachineError, match="glu_exact is wrong"):
        compare("tiny", 0.9, ["exact"], run=SHORT)


def _off_by_one_neuron(x, gate, up, down, activation, tally):
    y = glu_exact(x, gate, up, down, activation, tally)
    active = (x @ gate.codes.float().T)[0].argmax()
    g, u = (x[0] @ w.codes[active].float() for w in (gate, up))
    return y - g * u * down.codes[active].float()


def test_a_real_model_is_measured_on_text():
    dense, exact = compare_model(None, run=SHORT)
    assert dense["model"] == "relu-llama-14m" and dense["synthetic"] is None
    assert 0.5 < exact["activation_sparsity"] < 1
    assert exact["bytes"] < dense["bytes"]
    (sparser,) = compare_model(None, ["exact"], run=SHORT, fatrelu_threshold=1.0)
    assert sparser["activation_sparsity"] > exact["activation_sparsity"]


def test_sequences_that_decode_together():
    rows = compare("tiny", 0.9, run=SHORT, batches=(1, 4))
    assert [(row["batch"], row["mode"]) for row in rows] == [(n, m) for n in (1, 4) for m in ("dense", "exact")]
    one, _, dense, exact = rows
    assert dense["tokens_per_s"] == pytest.approx(4e6 / dense["median_us"], rel=1e-3)
    weights = weight_bytes(shape("tiny"), "bf16")
    assert dense["bytes"] - weights == pytest.approx(
        4 * (one["bytes"] - weights), abs=8
    )  # four caches, one set of weights
    # each sequence has tokens of its own, and a neuron's rows are read once for all that need it
    alone = compare("tiny", 0.9, run=SHORT)[1]["bytes"] - one["bytes"]
    assert alone < exact["bytes"] - dense["bytes"] < 0
    whole = compare_model(None, ["exact"], run=SHORT, batches=(2,))
    assert whole[0]["batch"] == 2 and 0.5 < whole[0]["activation_sparsity"] < 1


def test_little_memory_means_fewer_layers_and_says_so(monkeypatch):
    full = dataclasses.replace(shape("minicpm-s-1b"))
    monkeypatch.setattr(decode.machine, "available_memory", lambda: 10 * 10**9)
    assert fit_layers(full, "bf16") is full
    for free in (9 * 10**9, 4 * 10**9, 10**9):
        monkeypatch.setattr(decode.machine, "available_memory", lambda free=free: free)
        part = fit_layers(full, "bf16")
        assert 1 <= part.layers < full.layers
        assert part.layers == 1 or weight_bytes(part, "bf16") + BUFFER_BYTES < free / 2


def test_wrong_options_are_the_users_fault():
    for arguments in [{"knobs": 1.3}, {"modes": ["fast"]}, {"weights": "int2"}, {"shape": "none"}]:
        with pytest.raises(UserError):
            compare(**{"shape": "tiny", "knobs": 0.9, "run": SHORT, **arguments})
    for name, value in [("tg", 1), ("batch", 0), ("batch", 17)]:
        with pytest.raises(UserError, match=name):
            Run(**{name: value})


def test_the_command_prints_one_document_and_appends_rows(capsys, tmp_path):
    file = tmp_path / "rows.jsonl"
    for _ in range(2):
        assert main(["bench", "--shape", "tiny", "--tg", "4", "--pp", "4", "--json", "-o", str(file)]) == 0
        document = json.loads(capsys.readouterr().out)
    assert [row["mode"] for row in document["rows"]] == ["dense", "exact"]
    assert [json.loads(line)["mode"] for line in file.read_text().splitlines()] == ["dense", "exact"] * 2


def test_the_command_prints_a_table(capsys):
    assert main(["bench", "--shape", "tiny", "--tg", "4", "--weights", "fp32", "--sparsity", "0.95"]) == 0
    out = capsys.readouterr().out
    assert "decode tiny" in out and "exact" in out and "GB/s" in out


def test_the_command_refuses_what_does_not_fit_together(capsys):
    assert main(["bench", "model", "--shape", "tiny"]) == 2
    assert main(["bench", "--sparsity", "0.9"]) == 2
    assert "--sparsity belongs to --shape" in capsys.readouterr().err
    for words, message in [
        ("--shape tiny --fatrelu-threshold 0.5", "--fatrelu-threshold belongs to a model"),
        ("--subject ops", "pass --shape"),
        ("--subject quality --shape tiny", "leave --shape out"),
        ("--subject ffn --shape tiny --batch 2", "belong to --subject decode"),
        ("--pp 4,8", "--pp takes one number"),
        ("--batch two", "--batch takes whole numbers"),
        ("--shape tiny --batch 2 --against llama-cpp", "leave --batch out"),
        ("--shape tiny --against vllm", "no engine 'vllm'; there are transformers-eager"),
    ]:
        assert main(["bench", *words.split()]) == 2, words
        assert message in capsys.readouterr().err.replace("to compare with", "").replace("  ", " ").replace(" ;", ";")


def test_the_command_times_other_subjects_and_draws(capsys, tmp_path):
    words = "--shape tiny --tg 10 --pp 4 --batch 1,2 --weights bf16,int8".split()
    assert main(["bench", *words, "--plot", str(tmp_path / "a.svg")]) == 0
    assert "2 sequences" in capsys.readouterr().out and b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert (
        main(["bench", "--shape", "tiny", "--subject", "prefill", "--pp", "8,32", "--plot", str(tmp_path / "a.png")])
        == 0
    )
    assert "times GEMMs" in capsys.readouterr().out and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "--shape", "tiny", "--subject", "ops", "--plot", str(tmp_path / "b.png")]) == 2


def test_the_command_takes_as_many_threads_as_load(threads, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "processors", lambda: SimpleNamespace(threads=1))
    torch.set_num_threads(2)
    assert main(["bench", "--shape", "tiny", "--tg", "2", "--json"]) == 0
    assert {row["threads"] for row in json.loads(capsys.readouterr().out)["rows"]} == {1}
    assert main(["bench", "--shape", "tiny", "--tg", "2", "--threads", "2", "--json"]) == 0
    assert {row["threads"] for row in json.loads(capsys.readouterr().out)["rows"]} == {2}
