"""accelerate(model, budget=): a live model on two parts of the CPU's memory, and back."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_models import PROMPT, assert_same, fingerprint, generate
from placed_plans import placed, predictor_of, some_profile
from tiny_engine import FP32_BOUND, assert_logits_close, make_model

import prosparse
import prosparse.hf.divided as divided
from prosparse.engine import Engine
from prosparse.engine.profiling import profile_neurons
from prosparse.errors import UnsupportedError, UserError
from prosparse.hardware import PRESETS
from prosparse.hf.movers import Moved, Mover
from prosparse.hf.shared import SharedGLU
from prosparse.kernels.weight import FLOATS, Weight
from prosparse.placement.sizes import Host, sizes_of
from prosparse.plan import Plan
from prosparse.sparsity import HybridFFN
from prosparse.weights.neuron_profile import Profile

N = 100
# (gate, hot, attention) of three layers
SPLITS = {
    "gates first": [(N, 32), (N, 0), (N, N)],
    "nothing on the fast tier": [(0, 0, False)] * 3,
    "all on the fast tier": [(N, N)] * 3,
    "layers and cuts": [(0, 0, False), (48, 17), (N, 1)],
    "slow between fast": [(50, 50), (0, 0, False), (50, 20)],
}
CUTS = SPLITS["layers and cuts"]
# A link without latency, so that sharing pays at this size.
MACHINE = dataclasses.replace(
    PRESETS["8gb-pcie3"], context_bytes=0, sync_s=0.0, gpu_launch_s=0.0, to_gpu=1e12, to_cpu=1e12, cpu_call_s=1e-3
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROSPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("prosparse.engine.profiling.TOKENS", 512)
        yield


@pytest.fixture(scope="module")
def engine(llama_folder: Path) -> Engine:
    return prosparse.load(llama_folder, weights="fp32")


@pytest.fixture(scope="module")
def profile(engine: Engine) -> Profile:
    return some_profile(engine)


def divide(model: Any, plan: Plan, profile: Profile, **options: Any) -> Any:
    return prosparse.accelerate(model, plan=plan, profile=profile, device="cpu", **options)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("splits", SPLITS)
def test_it_says_what_the_undivided_model_says_and_comes_back(
    model: Any, reference: Any, engine: Engine, profile: Profile, splits: str, head: bool
) -> None:
    expected = generate(reference)
    generate(model)  # transformers marks modules the first time
    before = fingerprint(model)
    assert divide(model, placed(engine, profile, SPLITS[splits], head=head), profile) is model
    assert torch.equal(generate(model), expected)
    with torch.no_grad():  # a prompt of 18 tokens, and a step of 3
        for ids in (PROMPT, PROMPT[:, :3]):
            assert_logits_close(model(ids).logits[0], reference(ids).logits[0], splits, FP32_BOUND)
    prosparse.restore(model)
    assert_same(fingerprint(model), before)
    assert torch.equal(generate(model), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_padded_batches_beams_and_static_caches(
    model: Any, reference: Any, engine: Engine, profile: Profile, options: dict[str, Any]
) -> None:
    divide(model, placed(engine, profile, CUTS), profile)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = PROMPT.view(2, 9)
    assert torch.equal(model.generate(ids, **given, **options), reference.generate(ids, **given, **options))


@pytest.mark.parametrize(("family", "tied"), [("minicpm", True), ("bamboo", False)])
def test_other_families_tied_tables_and_models_that_are_accelerated(tmp_path: Path, family: str, tied: bool) -> None:
    """`prosparse.AutoModelForCausalLM` gives accelerated models; norms and scales of a layer stay its own."""
    folder = make_model(tmp_path / "m", family=family, layers=3, tied=tied, neurons=N)
    model = prosparse.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected, undivided = generate(model), prosparse.load(folder, weights="fp32")
    profile = some_profile(undivided)
    for head in (True, False):
        divide(model, placed(undivided, profile, CUTS, head=head), profile)
        assert torch.equal(generate(model), expected)
        prosparse.restore(model)
        assert torch.equal(generate(model), expected)


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
@pytest.mark.parametrize("fmt", FLOATS)
def test_modes_and_formats_count_what_the_engine_counts(tmp_path: Path, mode: str, fmt: str) -> None:
    folder = make_model(tmp_path / "m", layers=3, neurons=N, dtype=FLOATS[fmt])
    undivided = prosparse.load(folder, weights=fmt, mode="dense")
    profile = some_profile(undivided)
    options = {"predictor": predictor_of(undivided, "low_rank", 0.0)} if mode == "predicted" else {}
    plan = placed(undivided, profile, [(0, 0, False), (48, 48), (17, 17)], mode, fmt)
    model = prosparse.AutoModelForCausalLM.from_pretrained(folder, dtype=FLOATS[fmt])
    divide(model, plan, profile, **options)
    theirs = prosparse.load(folder, plan=plan, profile=profile, device="cpu", **options)
    ids = generate(model)[0].tolist()
    told = theirs.generate(PROMPT[0].tolist(), max_new_tokens=12, ignore_eos=True)
    stats = prosparse.stats(model)
    assert stats["cold"]["layers"] == {"shared": 2, "slow": 1} and stats["cold"]["parts"] == 22
    if fmt == "fp32":
        assert tuple(ids[PROMPT.shape[1] :]) == told.token_ids
        for name in ("activation_sparsity", "predicted_sparsity"):
            assert stats[name] == told.stats[name], name
        assert stats["cold"] | {"moved": None} == told.stats["cold"], "neurons change places in an engine alone"
    assert 0 < stats["cold"]["share"] < 1
    prosparse.stats(model, reset=True)
    assert prosparse.stats(model)["cold"]["parts"] == 0


@pytest.mark.parametrize("fmt", FLOATS)
@pytest.mark.parametrize("budget", ["shared", "whole"])
def test_what_lies_on_the_fast_tier_is_what_the_plan_counts(llama_folder: Path, budget: str, fmt: str) -> None:
    """To the byte: the weights of a budget's plan, and the cache of its context."""
    own = sizes_of(prosparse.load(llama_folder).config, fmt, fmt, 64, "exact", None, Host(FLOATS[fmt].itemsize, None))
    room = 4 << 30 if budget == "whole" else own.fixed + own.head + 3 * own.attention + 3 * own.cache + 150 * own.row
    model = prosparse.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=FLOATS[fmt])
    whole = sum(parameter.nbytes for parameter in model.parameters())
    prosparse.accelerate(model, budget=room, machine=MACHINE, device="cpu", context=64)
    division = divided.division_of(model)
    assert division is not None and division.plan.placement is not None
    placement, splits = division.plan.placement, [layer.split for layer in division.plan.layers]
    fast = [split is not None and split.attention for split in splits]
    with torch.no_grad():
        kept = model(torch.zeros(1, 64, dtype=torch.int64), use_cache=True).past_key_values.layers
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer, near in zip(kept, fast, strict=True) if near)
    shared = [site.module.prosparse_ffn for site in division.sites if isinstance(site.module, SharedGLU)]  # type: ignore[union-attr]
    assert bool(shared) == (budget == "shared")
    block = model.model.layers[fast.index(True)].self_attn.q_proj.weight.untyped_storage().data_ptr()
    weights = [
        *model.parameters(),
        *(each.codes for ffn in shared for each in (ffn.hot.gate, ffn.hot.up, ffn.hot.down)),
    ]
    near = [each for each in weights if not each.is_meta and each.untyped_storage().data_ptr() == block]
    assert sum(each.nbytes for each in near) + cache + own.fixed == placement.gpu_bytes <= placement.budget == room
    cold = [each.codes for ffn in shared for each in (ffn.cold.gate, ffn.cold.up, ffn.cold.down)]
    far = [each for each in weights if not each.is_meta and each.untyped_storage().data_ptr() != block]
    assert sum(each.nbytes for each in [*near, *far, *cold]) == whole, "nothing lies in both"


@pytest.mark.parametrize("head", [True, False])
def test_every_tensor_lies_where_the_plan_says(model: Any, engine: Engine, profile: Profile, head: bool) -> None:
    divide(model, placed(engine, profile, CUTS, head=head), profile)
    layers, block = model.model.layers, model.model.layers[1].self_attn.q_proj.weight.untyped_storage().data_ptr()
    near = {n for n, p in model.named_parameters() if not p.is_meta and p.untyped_storage().data_ptr() == block}
    around = {f"model.layers.{i}.{n}" for i in (1, 2) for n, _ in layers[i].named_parameters() if "mlp" not in n}
    assert near == around | ({"lm_head.weight", "model.norm.weight"} if head else set())
    shown = {n for n, p in model.named_parameters() if p.is_meta}
    assert shown == {f"model.layers.{i}.mlp.{name}_proj.weight" for i in (1, 2) for name in ("gate", "up", "down")}
    ffns = [layer.mlp.prosparse_ffn for layer in layers[1:]]
    hot, cold = ([part.codes for ffn in ffns for part in parts_of(ffn)[side]] for side in (0, 1))
    assert {part.untyped_storage().data_ptr() for part in hot} == {block}
    assert len({part.untyped_storage().data_ptr() for part in cold} - {block}) == 1
    assert [len(part) for part in hot] == [48, 17, 17, N, 1, 1]
    assert [len(part) for part in cold] == [N - 48, N - 17, N - 17, 0, N - 1, N - 1]
    assert ffns[0].buffer is ffns[1].buffer and ffns[0].link is ffns[1].link


def parts_of(ffn: HybridFFN) -> tuple[list[Weight], list[Weight]]:
    return [ffn.hot.gate, ffn.hot.up, ffn.hot.down], [ffn.cold.gate, ffn.cold.up, ffn.cold.down]


def test_arguments_are_brought_where_a_module_is_once_a_forward() -> None:
    """The meta device stands for a GPU."""
    meta, cpu, moved = torch.device("meta"), torch.device("cpu"), Moved()
    first, second, last = Mover(meta, moved, True), Mover(meta, moved), Mover(cpu, moved)
    mask, angles, hidden = torch.ones(2, 2), (torch.ones(3), torch.ones(3)), torch.ones(1, 4)
    given = {"attention_mask": mask, "position_embeddings": angles, "use_cache": True, "past_key_values": None}
    module = torch.nn.Identity()
    (there,), named = first(module, (hidden,), given)
    assert there.device == meta and [each.device for each in named["position_embeddings"]] == [meta, meta]
    assert named["use_cache"] is True and named["past_key_values"] is None
    assert second(module, (), given)[1]["attention_mask"] is named["attention_mask"]
    assert last(module, (hidden,), given) == ((hidden,), given), "nothing moves that is there"
    assert second(module, (), {"hidden_states": hidden})[1]["hidden_states"].device == meta
    assert first(module, (), given)[1]["attention_mask"] is not named["attention_mask"], "a new forward"


def test_a_profile_is_counted_as_the_engine_counts_it(model: Any, engine: Engine, llama_folder: Path) -> None:
    options = {"budget": "4GiB", "machine": MACHINE, "device": "cpu"}
    prosparse.accelerate(model, **options)
    division = divided.division_of(model)
    content = some_profile(engine).content
    assert division is not None and division.plan.placement is not None
    assert division.plan.placement.profile == profile_neurons(engine, content).key
    prosparse.restore(model)
    prosparse.load(llama_folder, weights="fp32", **options)  # its profile is in the cache, for both


def test_an_error_on_the_way_leaves_the_model_as_it_was(
    model: Any, engine: Engine, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    prosparse.accelerate(model)
    before, expected = fingerprint(model), generate(model)
    before["parameters"] = {n: (i, s, v) for n, (i, s, v) in fingerprint(model)["parameters"].items()}
    made = divided.HybridFFN
    calls: list[int] = []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no memory for one more layer")
        return made(*arguments)

    monkeypatch.setattr(divided, "HybridFFN", fail)
    with pytest.raises(MemoryError):
        divide(model, placed(engine, profile, CUTS), profile)
    assert_same(fingerprint(model), before)
    assert torch.equal(generate(model), expected) and divided.division_of(model) is None


def test_what_a_divided_model_does_not_do(model: Any, engine: Engine, profile: Profile) -> None:
    expected = generate(model)
    divide(model, placed(engine, profile, CUTS), profile)
    for act, message in [
        (lambda: model.to(torch.float64), "stays where its plan puts it; restore the model first"),
        (lambda: copy.deepcopy(model), "is not copied or pickled; restore the model first"),
        (lambda: pickle.dumps(model), "is not copied or pickled"),
        (lambda: model.state_dict(), "state_dict: the weights of a divided model lie in two places"),
        (lambda: model(PROMPT), "computes no gradients; call it under torch.no_grad"),
        (lambda: prosparse.accelerate(model), "is divided already; restore it first"),
        (lambda: prosparse.restore(model.model), "is part of a divided one; restore the whole"),
    ]:
        with pytest.raises(UserError, match=message):
            act()
    assert torch.equal(generate(model), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "4GiB", "plan": "p.json"}, "a plan already has its budget"),
        ({"budget": "4GiB", "weights": "int8"}, "a budget keeps weights as they are"),
        ({"profile": "p"}, "profile belongs to a budget, and there is none"),
        ({"context": 9, "device": "cpu"}, "context, device belongs to a budget"),
        ({"budget": "much"}, "budget: 'much' is no size"),
        ({"budget": "1MiB"}, "has no room for the attention of one layer"),
        ({"budget": "4GiB", "context": 1}, "context must be a whole number of at least 2 tokens"),
        ({"plan": "nowhere"}, "nowhere: cannot read the plan"),
    ],
)
def test_what_is_refused(model: Any, options: dict[str, Any], message: str) -> None:
    before = fingerprint(model)
    named = (
        {"machine": MACHINE, "device": "cpu"} if "budget" in options else {"device": "cpu"} if "plan" in options else {}
    )
    with pytest.raises(UserError, match=message):
        prosparse.accelerate(model, **{**named, **options})
    assert_same(fingerprint(model), before)


def test_models_that_are_not_divided(tiny: Any) -> None:
    options = {"budget": "4GiB", "machine": MACHINE, "device": "cpu"}
    with pytest.raises(UserError, match="none can be made without its tokenizer .*; pass profile"):
        prosparse.accelerate(tiny(hidden_act="relu"), **options)
    with pytest.raises(UnsupportedError, match="a budget needs a whole model that prosparse.load runs"):
        prosparse.accelerate(tiny(hidden_act="relu").model.layers, **options)
    with pytest.raises(UserError, match='is on meta; a budget divides a model that is on the CPU.*device_map="cpu"'):
        prosparse.accelerate(tiny(hidden_act="relu").to("meta"), **options)
    mixed = tiny(hidden_act="relu")
    mixed.lm_head.to(torch.bfloat16)
    with pytest.raises(UserError, match="a budget needs one of fp32, fp16, bf16 for all of them"):
        prosparse.accelerate(mixed, **options)
