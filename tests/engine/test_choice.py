"""Which kernel computes an exact layer: counts and times decide, no clock does, and the tokens never change."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from pathlib import Path

import pytest
from steps_by_hand import CalledAgain, DecoderStep
from tiny_engine import make_model, some_tokens

import prosparse
from prosparse.engine import Engine, choice, kernels, load
from prosparse.engine.choice import MARGIN, step_rows
from prosparse.engine.graph import StepPool
from prosparse.engine.kernels import KernelChoice, times_of
from prosparse.hardware import HIGHEST, KeptTimes, Times
from prosparse.kernels import cpu
from prosparse.plan import STEP_ROWS, LayerPlan, Plan
from prosparse.sparsity import DenseFFN, ExactFFN

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference makes no bitwise promise")
LAYERS, NEURONS = 3, 200
LEAST = EVERY = 8  # steps, so that texts may be short
LONG = {"ignore_eos": True, "max_new_tokens": 2 * EVERY + 4}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEAST", LEAST)
    monkeypatch.setattr(kernels, "EVERY", EVERY)


class Crossing:
    """Times that cross where the test says; remembers for which steps they were measured."""

    def __init__(self, crossover: float, is_known: bool = True) -> None:
        self.times = Times((0.0, crossover), (1.0, 1.0), (2.0, 1.0))
        self.is_known, self.asked = is_known, []

    def known(self, rows: int) -> Times | None:
        return self.times if self.is_known or rows in self.asked else None

    def measured(self, rows: int) -> Times:
        self.asked.append(rows)
        return self.times


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", layers=LAYERS, neurons=NEURONS)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Engine:
    return load(folder, weights="fp32")


def over(plain: Engine, times: Crossing | None, plan: Plan | None = None, pool: StepPool | None = None) -> Engine:
    return Engine(
        plain.decoder, plain.tokenizer, plan or plain.plan, plain.model_sampling, plain.kv_dtype, pool=pool, times=times
    )


def tell(made: KernelChoice, zeros: list[float], rows: int = 1, steps: int = LEAST) -> list[bool]:
    """Steps in which layers had so many zeros, on what was chosen; returns what is chosen then."""
    dense = made.which(rows)
    counted = [
        [steps * NEURONS] * 2 + [round((1 - own) * steps * NEURONS), 0]
        if is_dense
        else [round((1 - own) * steps * NEURONS), 0, 0, 0]
        for own, is_dense in zip(zeros, dense, strict=True)
    ]
    made.learn(step_rows(rows), dense, steps, steps, counted)
    return list(made.which(rows))


def chosen(plain: Engine, times: Crossing) -> KernelChoice:
    return KernelChoice(plain.decoder, plain.plan, times)


def test_below_the_crossover_a_layer_is_dense_and_well_above_it_exact_again(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "WINDOW", 1)  # nothing but the latest counts
    made = chosen(plain, Crossing(0.2))
    assert tell(made, [0.5, 0.21, 0.19]) == [False, False, True]
    assert tell(made, [0.5, 0.1, 0.2 + MARGIN - 0.01]) == [False, True, True]  # not to and fro
    assert tell(made, [0.1, 0.2 + MARGIN + 0.01, 0.2 + MARGIN - 0.01]) == [True, False, True]
    assert tell(made, [0.1, 0.21, 0.9]) == [True, False, False]


def test_a_mean_must_hold_enough_steps_and_forgets_slowly(plain: Engine) -> None:
    made = chosen(plain, Crossing(0.2))
    assert tell(made, [0.1] * 3, steps=LEAST - 1) == [False] * 3
    assert tell(made, [0.1] * 3, steps=1) == [True] * 3
    assert tell(made, [0.5] * 3, steps=1) == [True] * 3  # an odd word
    for _ in range(500):
        assert tell(made, [0.1] * 3) == [True] * 3
    turns = 0
    while all(made.which(1)):
        tell(made, [0.5] * 3)
        turns += 1
    assert 10 < turns < 100


def test_steps_of_different_numbers_of_tokens_are_different(plain: Engine) -> None:
    made = chosen(plain, Crossing(0.2))
    assert tell(made, [0.1] * 3, rows=5) == [True] * 3
    assert [made.which(tokens) == (True,) * 3 for tokens in (1, 4, 5, 8, 9)] == [False, False, True, True, False]
    assert [layer.dense_rows for layer in made.plan.layers] == [(8,)] * 3
    assert [step_rows(tokens) for tokens in (1, 2, 3, 4, 5, 9, 16)] == [1, 2, 4, 4, 8, 16, 16]


def test_of_a_dense_step_the_union_is_estimated_by_chance(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "WINDOW", 1)
    made = chosen(plain, Crossing(0.2))
    tell(made, [0.1] * 3, rows=4)
    steps, dense = LEAST, made.which(4)
    for zeros, stays in ((0.7, True), (0.75, False)):  # for each of four tokens: 0.7^4 = 0.24, 0.75^4 = 0.32
        nonzero = round((1 - zeros) * 4 * steps * NEURONS)
        made.learn(4, dense, steps, 4 * steps, [[steps * NEURONS, steps * NEURONS, nonzero, 0]] * 3)
        assert made.which(4) == (stays,) * 3


def test_an_up_projection_that_makes_zeros_of_its_own_says_nothing_of_the_gate(tmp_path: Path) -> None:
    engine = load(make_model(tmp_path / "model", family="bamboo", neurons=NEURONS), weights="fp32")
    made = chosen(engine, Crossing(0.2))
    assert tell(made, [0.1, 0.5]) == [True, False]
    for _ in range(30):
        assert tell(made, [0.9, 0.9]) == [True, False]


def test_nothing_is_measured_before_a_layer_comes_near(plain: Engine) -> None:
    times = Crossing(0.2, is_known=False)
    made = chosen(plain, times)
    tell(made, [0.9, 0.5, HIGHEST + 0.01])
    made.settle()
    assert times.asked == []
    assert tell(made, [0.0, 0.15, 0.9], rows=2) == [True, False, False]  # no zeros need no times
    assert times.asked == []  # not while a request runs
    made.settle()
    made.settle()
    assert times.asked == [2] and made.which(2) == (True, True, False)


def test_without_times_a_planned_layer_stays_dense_until_it_is_clearly_sparse(plain: Engine) -> None:
    layers = tuple(dataclasses.replace(own, dense_rows=(1,)) for own in plain.plan.layers)
    made = KernelChoice(plain.decoder, dataclasses.replace(plain.plan, layers=layers), Crossing(0.1, is_known=False))
    assert tell(made, [0.05, 0.3, HIGHEST + 0.1]) == [True, True, False]
    made.settle()
    assert made.which(1) == (True, False, False)


@needs_kernels
@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("prompts", [1, 3])
def test_tokens_are_the_same_when_layers_change_over(folder: Path, weights: str, prompts: int, caplog) -> None:
    plain = load(folder, weights=weights)
    asked = [some_tokens(5, seed=seed) for seed in range(prompts)]
    expected = plain.generate(asked, **LONG)
    assert {kernel for result in expected for kernel in result.stats["ffn_kernels"]} == {"exact"}
    assert all(own.dense_rows == () for own in plain.plan.layers)
    caplog.set_level(logging.INFO, "prosparse")
    engine = over(plain, Crossing(0.9))
    first, second = engine.generate(asked, **LONG), engine.generate(asked, **LONG)
    for before, own, again in zip(expected, first, second, strict=True):
        assert before.token_ids == own.token_ids == again.token_ids
        assert own.stats["ffn_kernels"] == ["exact and dense"] * LAYERS
        assert again.stats["ffn_kernels"] == ["dense"] * LAYERS
        assert own.stats["activation_sparsity"] == before.stats["activation_sparsity"]
        assert again.stats["bytes_per_token"] > own.stats["bytes_per_token"] > before.stats["bytes_per_token"]
    (line,) = [record.message for record in caplog.records if "kernel" in record.message]
    assert f"the dense kernel now computes steps of {'1 token' if prompts == 1 else 'up to 4 tokens'} in layers" in line
    assert all(f" {layer} (" in line for layer in range(LAYERS))


def test_a_change_over_makes_no_tables(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prosparse.model.decoder.RopeTable", None)  # of a long context they are megabytes
    assert KernelChoice(plain.decoder, plain.plan).decoder((True,) * LAYERS).rope is plain.decoder.rope


@needs_kernels
def test_a_plan_takes_the_choice_along(folder: Path, plain: Engine, tmp_path: Path) -> None:
    engine = over(plain, Crossing(0.9))
    expected = engine.generate(some_tokens(5), **LONG)
    assert [own.dense_rows for own in engine.plan.layers] == [(1,)] * LAYERS
    (tmp_path / "plan.json").write_text(engine.plan.to_json())
    for deterministic in (False, True):
        again = load(folder, weights="fp32", plan=tmp_path / "plan.json", deterministic=deterministic)
        assert again.plan == engine.plan
        result = again.generate(some_tokens(5), **LONG)
        ran = result.stats["ffn_kernels"]
        # without measured times, about half zeros are too many for the dense kernel
        assert ran == (["dense"] * LAYERS if deterministic else ["exact and dense"] * LAYERS)
        assert result.token_ids == expected.token_ids


def test_deterministic_never_times(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[load.__module__], "times_of", lambda *_: pytest.fail("something is timed"))
    engine = load(folder, deterministic=True)
    monkeypatch.setattr(KernelChoice, "learn", lambda *_: pytest.fail("counts are looked at"))
    for _ in range(2):
        result = engine.generate(some_tokens(5), **LONG)
    assert result.stats["ffn_kernels"] == ["exact"] * LAYERS


@needs_kernels
def test_what_is_timed_is_exact_layers_on_the_cpu(plain: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(times_of(plain.decoder, plain.plan), KeptTimes)
    dense = load(folder, mode="dense")
    assert times_of(dense.decoder, dense.plan) is None
    assert dense.generate(some_tokens(3), max_new_tokens=3).stats["ffn_kernels"] == ["dense"] * LAYERS
    assert dense.generate(some_tokens(3), max_new_tokens=1).stats["ffn_kernels"] is None
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert times_of(plain.decoder, plain.plan) is None


@needs_kernels
def test_a_models_own_layers_are_timed(plain: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path))
    times = times_of(plain.decoder, plain.plan)
    assert times is not None and times.measured(4) == times.known(4)
    assert times_of(plain.decoder, plain.plan).known(4) == times.known(4)
    assert 0 <= times.measured(4).crossover <= HIGHEST


@needs_kernels
def test_runs_that_share_an_engine_while_it_changes_over(plain: Engine) -> None:
    prompts = [some_tokens(5, seed=seed) for seed in range(3)]
    expected = [plain.generate(prompt, **LONG).token_ids for prompt in prompts]
    engines = [over(plain, Crossing(0.9)), over(plain, Crossing(0.9, is_known=False))]
    found: dict[tuple[int, int], list] = {}

    def work(engine: int, prompt: int) -> None:
        found[engine, prompt] = [engines[engine].generate(prompts[prompt], **LONG).token_ids for _ in range(3)]

    workers = [threading.Thread(target=work, args=(engine, prompt)) for engine in range(2) for prompt in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == {(engine, prompt): [expected[prompt]] * 3 for engine in range(2) for prompt in range(3)}
    assert [[own.dense_rows for own in engine.plan.layers] for engine in engines[:1]] == [[(1,)] * LAYERS]


class Pool(StepPool):
    """Remembers which blocks its steps were recorded of."""

    def __init__(self, plain: Engine) -> None:
        self.recorded: list[type] = []

        def make(decoder, *others) -> DecoderStep:
            self.recorded.append(type(decoder.blocks[0][1]))
            return DecoderStep(decoder, *others)

        super().__init__(plain.decoder, plain.kv_dtype, make, CalledAgain)


@needs_kernels
def test_recorded_steps_change_between_requests_and_each_choice_has_its_graph(plain: Engine) -> None:
    pool, prompt = Pool(plain), some_tokens(5)
    expected = plain.generate(prompt, **LONG)
    engine = over(plain, Crossing(0.9), pool=pool)
    results = [engine.generate(prompt, **LONG) for _ in range(3)]
    assert [result.stats["ffn_kernels"][0] for result in results] == ["exact", "dense", "dense"]
    assert all(result.token_ids == expected.token_ids for result in results)
    assert pool.recorded == [ExactFFN, DenseFFN]
    engine._choice._dense[1] = (False,) * LAYERS  # as if it had been chosen
    assert engine.generate(prompt, **LONG).stats["ffn_kernels"][0] == "exact"
    assert pool.recorded == [ExactFFN, DenseFFN], "the graph of the choice before is still there"


@needs_kernels
def test_a_recorded_run_of_changing_size_says_nothing(plain: Engine) -> None:
    engine = over(plain, Crossing(0.9), pool=Pool(plain))
    prompts = [some_tokens(4, seed=seed) for seed in range(3)]
    text = plain.generate(prompts, **LONG)[0].text
    results = engine.generate(prompts, stop=(text[8:11],), **LONG)
    assert len({len(each.token_ids) for each in results}) > 1
    assert all(own.dense_rows == () for own in engine.plan.layers)


@pytest.mark.parametrize("rows", [(3,), (0,), (1, 32), ("1",)])
def test_what_dense_rows_may_be(rows: tuple) -> None:
    assert LayerPlan("exact", dense_rows=STEP_ROWS).dense_rows == STEP_ROWS
    with pytest.raises(prosparse.errors.UserError, match="dense_rows is .*; supported are 1, 2, 4, 8, 16"):
        LayerPlan("exact", dense_rows=rows)
    for mode in ("dense", "predicted"):
        with pytest.raises(prosparse.errors.UserError, match="dense_rows is for exact layers on one device"):
            LayerPlan(mode, dense_rows=(1,))
