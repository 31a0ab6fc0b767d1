"""Result files against each other: noise is no difference, and a difference is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prosparse.bench import compare, plots
from prosparse.bench.clock import Timing
from prosparse.bench.compare import FASTER, SAME, SLOWER, UNKNOWN, compare_rows
from prosparse.bench.files import append
from prosparse.bench.row import make_row, measured

RESULTS = Path(compare.__file__).parent / "results"


def rows_of_a_run(seed: int, machine: float = 1.0, dense: float = 1000.0, exact: float = 600.0) -> list[dict[str, Any]]:
    """A run on a machine that is so many times as slow, with slow moments that last and fall on both alike."""
    rng = np.random.default_rng(seed)
    moments = np.repeat(1 + rng.exponential(0.1, 16), 8)
    timings = {
        name: Timing(machine * us * moments * (1 + rng.exponential(0.03, 128)))
        for name, us in (("dense", dense), ("exact", exact), ("probe", 400.0))
    }
    knobs = {"activation_sparsity": 0.88, "skew": 0.5, "predictability": 0.9, "overlap": 0.4}
    common = {"subject": "decode", "shape": "tiny", "weights": "bf16", "synthetic": knobs, "context": 144}
    return [make_row(mode=mode, **common, **measured(timings, mode)) for mode in ("dense", "exact")]


def verdicts(before: list[Any], after: list[Any], **options: Any) -> list[str]:
    return [each.verdict for each in compare_rows(before, after, **options)]


def test_the_same_code_does_not_differ():
    runs = [rows_of_a_run(seed) for seed in range(12)]
    for before, after in zip(runs[::2], runs[1::2], strict=True):
        assert verdicts(before, after) == [SAME, SAME]
    found = compare_rows(runs[0], runs[0])
    assert all(each.ratio == 1 and each.low < 1 < each.high for each in found)


def test_what_became_slower_is_found():
    before, after = rows_of_a_run(0), rows_of_a_run(1, exact=720.0)
    dense, exact = compare_rows(before, after)
    assert (dense.verdict, exact.verdict) == (SAME, SLOWER)
    assert exact.low < 1.2 < exact.high and exact.case == "decode tiny bf16 exact at 88%"
    assert verdicts(after, before) == [SAME, FASTER]
    assert verdicts(before, after, margin=0.3) == [SAME, SAME]


def test_by_base_a_slower_machine_is_no_difference():
    before, after = rows_of_a_run(0), rows_of_a_run(1, machine=1.5)
    assert verdicts(before, after) == [SLOWER, SLOWER]
    (exact,) = compare_rows(before, after, by="base")  # the base itself has none
    assert exact.verdict == SAME and exact.before == pytest.approx(0.6, rel=0.03)
    (worse,) = compare_rows(before, rows_of_a_run(2, machine=1.5, exact=720.0), by="base")
    assert worse.verdict == SLOWER


def test_runs_that_differ_among_themselves_widen_the_interval():
    steady = [row for seed in range(3) for row in rows_of_a_run(seed)]
    shaky = [row for seed, machine in enumerate((1.0, 1.3, 1.1)) for row in rows_of_a_run(10 + seed, machine)]
    one_run = compare_rows(rows_of_a_run(0), rows_of_a_run(11, 1.3))[0]
    assert one_run.verdict == SLOWER
    assert verdicts(steady, shaky) == [SAME, SAME]


def test_rows_without_samples_are_not_judged():
    before, after = rows_of_a_run(0), rows_of_a_run(1, exact=2000.0)
    del before[1]["samples"]
    assert verdicts(before, after) == [SAME, UNKNOWN]
    other = [{**row, "context": 16} for row in after]
    assert compare_rows(before, other) == []


def test_quality_is_compared_by_its_intervals():
    def row(kl: list[float | None]) -> dict[str, Any]:
        return make_row(subject="quality", model="m", mode="exact", weights="int4", quality={"kl_divergence": kl})

    assert verdicts([row([1e-3, 9e-4, 1.1e-3])], [row([1.05e-3, 1e-3, 1.2e-3])]) == [SAME]
    assert verdicts([row([1e-3, 9e-4, 1.1e-3])], [row([2e-3, 1.8e-3, 2.2e-3])]) == [SLOWER]
    assert verdicts([row([1e-3, None, None])], [row([2e-3, None, None])]) == [SAME]


def test_the_command(tmp_path, capsys):
    before, after = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    append(before, rows_of_a_run(0))
    append(after, rows_of_a_run(1, exact=720.0))
    assert compare.main([str(before), str(after)]) == 1
    assert "slower" in capsys.readouterr().out
    assert compare.main([str(after), str(before), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["verdict"] for each in document["differences"]] == [SAME, FASTER]
    (tmp_path / "c.jsonl").write_text('{"no": "row"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    for words, message in [
        ([before, tmp_path / "absent"], "absent: cannot read the rows"),
        ([before, tmp_path / "c.jsonl"], "c.jsonl: line 1 is no benchmark row"),
        ([before, tmp_path / "empty.jsonl"], "have no case in common"),
        ([before, after, "--margin", "2"], "--margin must be at least 0"),
    ]:
        assert compare.main([str(word) for word in words]) == 2
        assert message in capsys.readouterr().err


def test_committed_rows_make_the_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = sorted(str(path) for path in RESULTS.glob("*.jsonl"))
    assert plots.main([*files, "-o", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"bench-tokens.png", "bench-tokens.svg", "bench-ffn.png", "bench-ffn.svg"} <= made.keys()
    assert plots.main([*files, "-o", str(tmp_path)]) == 0
    assert made == {path.name: path.read_bytes() for path in tmp_path.iterdir()}  # the same rows, the same bytes
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(made)


def test_figures_of_every_subject(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    engines = [{**row, "run": "r"} for row in rows_of_a_run(0)]
    rows = [{**row, "tokens_per_s": 10.0, "activation_sparsity": 0.88} for row in engines]
    rows.append({**rows[0], "mode": "llama-cpp", "weights": "BF16"})
    rows += [{**row, "batch": batch, "run": str(batch)} for row in rows[:2] for batch in (2, 4, 8)]
    rows += [{**row, "subject": "prefill", "part": "pp64", "run": "p"} for row in rows[:1]]
    drawn = plots.draw(rows)
    assert sorted(drawn) == sorted(f"{name}.{kind}" for name in ("batch", "prefill", "engines") for kind in plots.KINDS)
    assert b"llama.cpp" not in drawn["batch.svg"] and all(data for data in drawn.values())
    append(tmp_path / "quality.jsonl", [make_row(subject="quality")])
    assert plots.main([str(tmp_path / "quality.jsonl"), "-o", str(tmp_path)]) == 2
    assert "make none of the figures tokens, ffn, batch, prefill, engines" in capsys.readouterr().err
