"""A budget: the profile and the plan that it makes, what is allocated for them, and what may be in the way."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parity.rows import ROWS
from placed_plans import placed, some_profile
from tiny_engine import decoded_logits, make_model, some_tokens
from tiny_families import write_experts, write_opt
from torch import Tensor

import prosparse
from prosparse import machine as this
from prosparse.cli import main
from prosparse.engine import Engine
from prosparse.engine.budget import plan_within
from prosparse.engine.profiling import profile_neurons
from prosparse.engine.session import Session
from prosparse.engine.windows import CALIBRATION, cut, read_text
from prosparse.errors import MachineError, UnsupportedError, UserError
from prosparse.hardware import PRESETS, Machine, parse_size
from prosparse.placement.sizes import sizes_of
from prosparse.plan import LayerPlan, Placement, Plan, Split, fingerprint
from prosparse.sparsity import HybridFFN, has_selector
from prosparse.study import measure
from prosparse.weights.formats import Formats
from prosparse.weights.neuron_profile import Profile

# A link without latency, so that sharing pays at the size of the embedded model.
MACHINE = dataclasses.replace(
    PRESETS["8gb-pcie3"], context_bytes=0, sync_s=0.0, gpu_launch_s=0.0, to_gpu=1e12, to_cpu=1e12, cpu_call_s=1e-3
)
BUDGETS = ["84MiB", "94MiB", "104MiB", "4GiB"]  # of which the workspace takes 68
IDS = some_tokens(12)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all: the profile of the embedded model is counted once."""
    folder, text = tmp_path_factory.mktemp("cache"), read_text(CALIBRATION)[0][:3000]  # a whole one takes long to split
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROSPARSE_CACHE", str(folder))
        patch.setattr("prosparse.engine.profiling.read_text", lambda path: [text])
        yield folder


def within(budget: str, **options: object) -> Engine:
    given = {"device": "cpu", "machine": MACHINE, "weights": "bf16", "context": 256, **options}
    return prosparse.load(budget=budget, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undivided() -> Engine:
    return prosparse.load(weights="bf16", context=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m")


@pytest.mark.parametrize(("mode", "weights"), [("exact", "bf16"), ("dense", "int4"), ("predicted", "int8")])
@pytest.mark.parametrize("budget", BUDGETS)
def test_what_is_allocated_is_what_the_plan_counts(budget: str, mode: str, weights: str) -> None:
    """To the byte, but for the workspace, which is reserved for prompts, buffers and graphs."""
    engine = within(budget, mode=mode, weights=weights)
    config, placement, decoder = engine.config, engine.plan.placement, engine.decoder
    assert placement is not None and placement.budget == parse_size(budget)
    sizes = sizes_of(config, weights, weights, 256, mode)
    tensors: list[Tensor] = []
    for (attention, ffn), layer in zip(decoder.blocks, engine.plan.layers, strict=True):
        if layer.split is None or not layer.split.attention:
            continue
        own = ffn.hot if isinstance(ffn, HybridFFN) else ffn
        matrices = [attention.qkv, attention.o, own.gate, own.up, own.down]  # type: ignore[attr-defined]
        tensors += [matrix.codes for matrix in matrices]
        tensors += [attention.norm, ffn.norm]  # type: ignore[attr-defined]
        tensors += ffn.selector.guess.tensors if has_selector(ffn) else []  # type: ignore[union-attr]
    if placement.head:
        tensors += [decoder.lm_head.codes, decoder.final_norm]  # type: ignore[list-item]
    session = Session(decoder, engine.kv_dtype, 1, engine.context)
    fast = [tier for tier in decoder.tiers.layers if tier.name == "fast"]
    held = sum(tensor.nbytes for tensor in tensors) + session.cache.nbytes(fast[0])
    assert held + sizes.fixed + MACHINE.context_bytes == placement.gpu_bytes <= placement.budget
    shared = [ffn for _, ffn in decoder.blocks if isinstance(ffn, HybridFFN)]
    assert len({id(ffn.buffer) for ffn in shared}) == (1 if shared else 0)
    assert sum(ffn.buffer.nbytes for ffn in shared[:1]) <= sizes.fixed


@pytest.mark.parametrize("budget", BUDGETS)
def test_tokens_are_those_of_the_undivided_model(undivided: Engine, budget: str) -> None:
    options = {"max_new_tokens": 16, "ignore_eos": True}
    expected = undivided.generate("Once upon a time", **options).token_ids
    assert within(budget).generate("Once upon a time", **options).token_ids == expected


def test_profile_and_plan_are_made_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    first = within("94MiB")

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("prosparse.engine.budget.place", never)
    monkeypatch.setattr("prosparse.engine.budget.profile_neurons", never)
    assert within("94MiB").plan == first.plan
    with pytest.raises(AssertionError, match="made again"):
        within("94MiB", context=128)
    with pytest.raises(AssertionError, match="made again"):
        within("94MiB", machine=dataclasses.replace(MACHINE, cpu_call_s=2e-3))


def test_the_profile_counts_what_measure_counts(undivided: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = cut(read_text(CALIBRATION)[:1], undivided.tokenizer, 256, 1024).inputs
    monkeypatch.setattr("prosparse.engine.profiling.read_text", lambda path: read_text(path)[:1])
    monkeypatch.setattr("prosparse.engine.profiling.TOKENS", 1024)
    ours, theirs = profile_neurons(undivided, "0"), measure(undivided, [windows]).profile()
    assert ours.tokens == theirs.tokens == windows.numel() and ours.model == theirs.model
    assert torch.equal(ours.counts, theirs.counts) and ours.content == "0"


def test_a_file_takes_the_place_of_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "machine.json").write_text(MACHINE.to_json())
    arguments = ["generate", "--prompt", "Once", "--max-new-tokens", "6", "--device", "cpu", "--budget", "94MiB"]
    arguments += ["--machine", str(tmp_path / "machine.json"), "--weights", "bf16", "--context", "256"]
    assert main([*arguments, "--stats", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["stats"]["cold"]["layers"]["shared"] > 0
    assert "of the active neurons of shared layers on the CPU, which had nothing to do" in err


def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["generate", "--prompt", "a", "--budget", "8GiB"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "there is no GPU to place on; leave --budget" in err
    with pytest.raises(MachineError, match="no usable GPU was found, so there is nothing to measure.*--machine"):
        prosparse.load(budget="8GiB", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "much"}, "budget: 'much' is no size; write for example 8GiB"),
        ({"budget": "1MiB"}, "plan: a budget of 1.0 MiB has no room for the attention of one layer.*pass at least"),
        ({"machine": "nowhere"}, "machine: 'nowhere' is neither a file nor one of 8gb-pcie3"),
        ({"plan": "plan.json"}, "load: a plan already has its budget, but another one was given too"),
        ({"profile": "nowhere"}, "nowhere: no such file"),
        ({"mode": "sparse"}, "mode is 'sparse'"),
    ],
)
def test_what_is_no_budget(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        within(**{"budget": "4GiB", **options})  # type: ignore[arg-type]


def test_what_only_a_budget_takes(undivided: Engine) -> None:
    with pytest.raises(UserError, match="a profile is for a budget or a placed plan, and there is neither"):
        prosparse.load(profile=some_profile(undivided))
    with pytest.raises(UserError, match="a machine is what a budget is planned for, and there is none"):
        prosparse.load(machine=MACHINE)


def test_shared_layers_are_not_looked_into(undivided: Engine) -> None:
    with pytest.raises(UnsupportedError, match="HybridFFN is no FFN that can be looked into"):
        measure(within("94MiB"), [torch.tensor([IDS])])


def hand_made(folder: Path, seed: int = 1, **options: object) -> tuple[Plan, Profile]:
    engine = prosparse.load(folder, weights="fp32")
    profile = some_profile(engine, seed)
    return placed(engine, profile, [(40, 10), (0, 0, False)], **options), profile  # type: ignore[arg-type]


def on_cpu(folder: Path, plan: Plan, profile: Profile | None, **options: object) -> Engine:
    return prosparse.load(folder, plan=plan, profile=profile, device="cpu", **options)  # type: ignore[arg-type]


def test_a_plan_or_profile_that_does_not_belong(folder: Path, tmp_path: Path) -> None:
    plan, profile = hand_made(folder)
    other = make_model(tmp_path / "other", seed=1)
    wide = make_model(tmp_path / "wide", neurons=128)
    stale = hand_made(folder, seed=2)[1]
    for arguments, message in [
        ((wide, plan, profile), "^plan: made for model .* with 2 layers, but this model is"),
        ((folder, plan, stale), f"^plan: was made with profile {profile.key}, but this one is {stale.key}"),
        ((folder, plan, None), f"^plan: was made with profile {profile.key}, which is not at hand; pass it with"),
        ((other, plan, profile), "^profile: made for weights .*, but these are"),
    ]:
        with pytest.raises(UserError, match=message):
            on_cpu(*arguments)  # type: ignore[arg-type]
    assert on_cpu(folder, plan, profile).context == 64
    odd = Plan(plan.model, (LayerPlan("exact", split=Split(5, 0, attention=False)),) * 2, "", plan.placement)
    with pytest.raises(UserError, match="layer 0 has its attention on the CPU but 5 neurons on the GPU"):
        on_cpu(folder, odd, profile)


def test_a_plan_is_for_its_formats_and_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, profile = hand_made(folder)
    for options, message in [
        ({"weights": "int8"}, "was made for --weights fp32, not int8"),
        ({"lm_head": "bf16"}, "was made for --lm-head fp32, not bf16"),
        ({"context": 65}, "has room for a context of 64 tokens, not 65"),
    ]:
        with pytest.raises(UserError, match=message):
            on_cpu(folder, plan, profile, **options)
    assert on_cpu(folder, plan, profile, context=32, weights="fp32").context == 32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="there is no GPU to place on.*--device cpu"):
        prosparse.load(folder, plan=plan, profile=profile)


def test_memory_that_shrank_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, profile = hand_made(folder)
    monkeypatch.setattr(this, "available_memory", lambda: 1000)
    with pytest.raises(MachineError, match="^plan: takes .* of memory for its fast part, but 0.0 MiB are free now"):
        on_cpu(folder, plan, profile)


def test_less_than_the_budget_is_free(caplog: pytest.LogCaptureFixture, undivided: Engine) -> None:
    machine: Machine = dataclasses.replace(MACHINE, gpu_bytes=parse_size("94MiB"))
    with caplog.at_level(logging.WARNING, logger="prosparse"):
        small = within("8GiB", machine=machine)
    assert [record.message for record in caplog.records] == [
        "of the budget of 8.00 GiB, 94.0 MiB can be had; it is planned for those"
    ]
    assert [layer.split for layer in small.plan.layers] == [layer.split for layer in within("94MiB").plan.layers]


def test_a_full_disk_keeps_nothing_and_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("prosparse.weights.whole_files.os.fsync", full)
    monkeypatch.setattr("prosparse.engine.profiling.TOKENS", 64)
    with caplog.at_level(logging.WARNING, logger="prosparse"):
        engine = prosparse.load(folder, budget="4GiB", device="cpu", machine=MACHINE)
    assert bool(decoded_logits(engine, IDS).isfinite().all())
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2 and all("cannot be written: the disk is full" in line for line in lines)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_damaged_files_in_the_cache_are_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROSPARSE_CACHE", str(tmp_path))
    monkeypatch.setattr("prosparse.engine.profiling.TOKENS", 64)
    options = {"budget": "4GiB", "device": "cpu", "machine": MACHINE, "context": 64}
    first = prosparse.load(folder, **options)  # type: ignore[arg-type]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".safetensors"]
    for path in files:
        path.write_bytes(b"{")
    with caplog.at_level(logging.WARNING, logger="prosparse"):
        assert prosparse.load(folder, **options).plan == first.plan  # type: ignore[arg-type]
    assert len(caplog.records) == 2
    assert prosparse.load(folder, plan=first.plan, device="cpu").plan == first.plan, "its profile is in the cache"


@pytest.mark.parametrize("kind", ["experts", "plain"])
def test_models_that_are_not_shared(tmp_path: Path, kind: str) -> None:
    write, what = {"plain": (write_opt, "FFNs without up projection"), "experts": (write_experts, "experts")}[kind]
    folder = next(row for row in ROWS if row.write is write).make(tmp_path / "m")
    with pytest.raises(UnsupportedError, match=f"load: a model with {what} runs on one device; leave --budget out"):
        prosparse.load(folder, budget="4GiB", device="cpu", machine=MACHINE)
    config = prosparse.ModelConfig.from_hf(folder)
    placement = Placement(2, 1, 8, "bf16", "bf16", True, "0", 1.0)
    plan = Plan(fingerprint(config), (LayerPlan("dense", split=Split(0, 0)),) * config.layers, "", placement)
    with pytest.raises(UnsupportedError, match=what):
        prosparse.load(folder, plan=plan, device="cpu")


def test_a_plan_is_kept_by_all_that_it_depends_on(undivided: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    real = plan_within.__globals__["place"]
    monkeypatch.setattr("prosparse.engine.budget.place", lambda *a, **k: made.append(1) or real(*a, **k))
    profile = some_profile(undivided)
    arguments = (10**9, MACHINE, undivided.config, profile, "x", "exact", Formats("bf16", "bf16"), 64, None)
    assert plan_within(*arguments) == plan_within(*arguments) and len(made) == 1
    for at, other in [(0, 2 * 10**9), (3, some_profile(undivided, seed=2)), (5, "dense"), (7, 128)]:
        before = len(made)
        plan_within(*arguments[:at], other, *arguments[at + 1 :])  # type: ignore[arg-type]
        assert len(made) == before + 1
