"""`place`: every byte is accounted, budgets are kept or refused with the number that works, and sharing has to pay."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from placed import SEVEN, case_of, profile_of, small_config, whole_model_bytes

from prosparse.config.shapes import shape
from prosparse.errors import UnsupportedError, UserError
from prosparse.hardware import PRESETS, parse_size
from prosparse.kernels.activation import Activation
from prosparse.kernels.weight import in_format
from prosparse.model.cache import KVCache
from prosparse.placement import place
from prosparse.placement.activity import NAMED, activity_of, named_over_active, stretched, synthetic_profile
from prosparse.placement.explain import explain
from prosparse.placement.sizes import sizes_of
from prosparse.plan import Plan, fingerprint
from prosparse.sparsity import Selector
from prosparse.weights.neuron_profile import Profile
from prosparse.weights.predictor import LayerPredictor, Predictor
from prosparse.weights.synthetic import synthetic_weights

MACHINE = PRESETS["8gb-pcie4"]
GIB = 2**30


def placed(machine=MACHINE, budget=None, **options):
    config = shape(SEVEN)
    given = {"mode": "exact", "context": 512} | options
    return place(config, profile_of(SEVEN), machine, machine.gpu_bytes if budget is None else budget, **given)


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "int8", "int4"])
def test_sizes_are_those_of_real_weights(fmt):
    config = shape("tiny")
    weights, _ = synthetic_weights(config, fmt, 0.8)
    sizes, own = sizes_of(config, fmt, fmt, 64, "exact"), weights.layers[0]
    norms = own.attention_norm.nbytes + own.ffn_norm.nbytes
    assert sizes.attention == own.qkv.nbytes + own.o.nbytes + norms
    assert sizes.row == own.gate.row_bytes == own.down.row_bytes
    assert sizes.head == weights.lm_head.nbytes + weights.final_norm.nbytes and sizes.embedding == weights.embed.nbytes
    cache = KVCache(config, 1, 64, torch.float32 if fmt == "fp32" else torch.bfloat16, torch.device("cpu"))
    assert config.layers * sizes.cache == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize("kind", ["low_rank", "low_bit_gate", "sign_bits"])
def test_predictors_have_the_size_of_what_scans(kind):
    config = shape("tiny")
    gate = in_format(torch.randn(config.neurons, config.hidden), "bf16")
    first, second = (in_format(torch.randn(*size), "int8") for size in ((6, config.hidden), (config.neurons, 6)))
    parts = {"first": first, "second": second} if kind == "low_rank" else {}
    own = LayerPredictor(kind, torch.zeros(config.neurons), **parts)
    predictor = Predictor((own, None), fingerprint(config), "")
    sizes = sizes_of(config, "bf16", "bf16", 64, "predicted", predictor)
    assert sizes.predictor == (Selector(own, gate).nbytes, 0)


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
@pytest.mark.parametrize("budget", ["5.3GiB", "6GiB", "7.2GiB"])
def test_bytes_are_the_sum_of_the_parts(mode, budget):
    case = case_of(mode=mode)
    plan = placed(budget=parse_size(budget), mode=mode, assumed_predictor=True)
    found = explain(case.config, plan, case.profile, MACHINE)
    assert sum(found.gpu.values()) == plan.placement.gpu_bytes <= parse_size(budget)
    assert plan.placement.gpu_bytes > 0.98 * parse_size(budget)
    sizes = case.sizes
    rows = 3 * case.config.layers * case.config.neurons * sizes.row
    layers = case.config.layers * (sizes.attention + sizes.cache) + sum(sizes.predictor)
    outside = found.gpu["workspace and graph"] + found.gpu["device context"]
    everything = sum(found.gpu.values()) + sum(found.cpu.values()) - outside
    assert everything == rows + layers + sizes.head + sizes.embedding


def test_a_budget_that_is_too_small_is_told_with_one_that_works():
    with pytest.raises(UserError, match=r"0\.70 GiB has no room for the attention of one layer") as caught:
        placed(budget=parse_size("0.7GiB"))
    enough = re.search(r"at least ([\d.]+GiB)", str(caught.value))[1]
    assert placed(budget=parse_size(enough)).placement.gpu_bytes <= parse_size(enough)
    with pytest.raises(UserError, match="has no room"):
        placed(budget=parse_size(enough) - GIB // 9)


def test_no_more_is_used_than_is_free():
    plan = placed(budget=16 * GIB)
    assert plan.placement.budget == MACHINE.gpu_bytes and plan.placement.gpu_bytes <= MACHINE.gpu_bytes
    with pytest.raises(UserError, match=r"budget of 16\.00 GiB \(of which 0\.50 GiB are free\)"):
        placed(dataclasses.replace(MACHINE, gpu_bytes=GIB // 2), budget=16 * GIB)


def test_everything_on_the_gpu_where_it_fits():
    machine = PRESETS["24gb-pcie4"]
    plan = placed(machine)
    assert all((own.split.gate, own.split.hot, own.split.attention) == (11008, 11008, True) for own in plan.layers)
    assert plan.placement.head and plan.reason.startswith("all on the GPU")
    assert plan.placement.gpu_bytes == whole_model_bytes(case_of(preset=machine))


def test_refuses_to_share_where_that_loses():
    slow = dataclasses.replace(MACHINE, sync_s=1.0)
    plan = placed(slow)
    assert plan.reason.startswith("all on the CPU") and plan.placement.gpu_bytes == 0 and not plan.placement.head
    assert all((own.split.gate, own.split.attention) == (0, False) for own in plan.layers)


def test_layers_stay_whole_where_the_way_between_costs_more_than_it_brings():
    plan = placed(dataclasses.replace(MACHINE, sync_s=3e-3), mode="exact")
    kinds = {(own.split.hot, own.split.attention) for own in plan.layers}
    assert kinds == {(11008, True), (0, False)}


def test_gates_come_before_up_and_down_rows():
    plan = placed()
    gates, hots = ([getattr(own.split, cut) for own in plan.layers] for cut in ("gate", "hot"))
    assert sum(gates) > 0.8 * 32 * 11008 and sum(hots) < 0.05 * 32 * 11008


def test_a_plan_travels_and_names_its_profile():
    plan = placed()
    assert Plan.from_json(plan.to_json()) == plan
    other = synthetic_profile(shape(SEVEN), fingerprint(shape(SEVEN)), 0.7)
    with pytest.raises(UserError, match="plan: made with profile .* make the plan again"):
        explain(shape(SEVEN), plan, other, MACHINE)
    with pytest.raises(UserError, match="plan: made for model"):
        explain(shape("relullama-7b"), plan, other, MACHINE)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mode": "predicted"}, "needs a predictor"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"weights": "int3"}, "weights is 'int3'"),
        ({"lm_head": "none"}, "lm_head is 'none'"),
    ],
)
def test_options_that_do_not_fit(changed, says):
    with pytest.raises(UserError, match=says):
        placed(**changed)


def test_models_and_profiles_that_do_not_fit():
    config = shape(SEVEN)
    with pytest.raises(UserError, match="profile: has 32 layers of 11008 neurons, the model 40 of 13824"):
        place(shape("prosparse-llama-2-13b"), profile_of(SEVEN), MACHINE, 7 * GIB, mode="exact")
    with pytest.raises(UserError, match="profile: made for model"):
        place(shape("relullama-7b"), profile_of(SEVEN), MACHINE, 7 * GIB, mode="exact")
    counted = profile_of(SEVEN)
    unknown = Profile(counted.counts, 0, counted.model, "", "PowerInfer")
    with pytest.raises(UserError, match="does not say how many tokens"):
        place(config, unknown, MACHINE, 7 * GIB, mode="exact")
    with pytest.raises(UnsupportedError, match="without up projection are not split"):
        sizes_of(dataclasses.replace(config, gated=False), "bf16", "bf16", 512, "exact")


def test_activity_sums_what_a_profile_says():
    config = small_config(neurons=4, layers=1, activation=Activation("relu", on_up=True))
    profile = Profile(torch.tensor([[1, 16, 4, 0]]), 16, fingerprint(config), "", "by hand")
    (own,) = activity_of(profile, config, ["exact"])
    assert own.opened.tolist() == [0, 1, 1.5, 1.75, 1.75]  # hottest first; the root, since up must be open too
    assert own.rows.tolist() == [0, 2, 2.75, 3.0625, 3.0625]
    assert math.exp(own.log_closed[-1] - own.log_closed[1]) == pytest.approx(0.5 * 0.75)
    told = Predictor((None,), "", "", {"layers": [{"predicted_sparsity": 0.7, "activation_sparsity": 0.9}]})
    assert named_over_active(told, 0) == pytest.approx(3) and named_over_active(None, 0) == NAMED


def test_stretched_curves_keep_their_frequencies():
    short = Profile(torch.tensor([[8, 0], [4, 2]]), 8, "", "", "by hand")
    config = small_config(neurons=9, layers=3)
    wide = stretched(short, config, "", 0.5625).frequency  # as it is: no odds are changed
    assert wide.shape == (3, 9) and torch.all(wide.diff(dim=1) <= 0)
    assert wide[0].mean() == pytest.approx(0.5, abs=1e-3) and wide[2].mean() == pytest.approx(0.375, abs=1e-3)
    assert wide[1, 0] == pytest.approx(0.75, abs=1e-3) and wide[1, -1] == pytest.approx(0.125, abs=1e-3)
    assert stretched(short, config, "", 0.9).frequency.mean() == pytest.approx(0.1, abs=1e-4)
