"""accelerate, restore and stats: in place, all or nothing, and gone without a trace."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from live_models import PROMPT, assert_same, fingerprint, generate
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import prosparse
import prosparse.hf.live as live
from prosparse import machine
from prosparse.errors import UnsupportedError, UserError


def test_shares_the_weights_and_keeps_names_and_shapes(model: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gate = model.model.layers[0].mlp.gate_proj.weight.data_ptr()
    bytes_before = sum(storages(model).values())
    assert prosparse.accelerate(model) is model
    mlp = model.model.layers[0].mlp
    assert mlp.gate_proj.weight.data_ptr() == gate
    assert mlp.down_proj.weight.shape == (64, 100) and mlp.down_proj.weight.t().is_contiguous()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    counters = 3 * 2 * 8  # layers, counters, bytes; at most a few numbers each
    assert bytes_before <= sum(storages(model).values()) <= bytes_before + 4 * counters


def storages(model: nn.Module) -> dict[int, int]:
    """Bytes of each piece of memory that a model holds, by its address."""
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def test_a_hundred_times_there_and_back(model: Any, reference: Any) -> None:
    expected = generate(reference)
    generate(model)  # transformers marks modules the first time
    before = fingerprint(model)
    gc.collect()
    tensors, held = count_tensors(), storages(model)
    for _ in range(100):
        prosparse.accelerate(model)
        prosparse.restore(model)
    gc.collect()
    assert count_tensors() == tensors and sorted(storages(model).values()) == sorted(held.values())
    moved = {n for n, p in model.named_parameters() if p.data_ptr() not in held}
    assert all(name.endswith("down_proj.weight") for name in moved), "nothing else was touched"
    assert_same(fingerprint(model), before)
    assert torch.equal(generate(model), expected)


def count_tensors() -> int:
    return sum(type(thing) in (Tensor, nn.Parameter) for thing in gc.get_objects())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(
    failing: int, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(model)
    installed = live.install
    calls = 0

    def install(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise MemoryError("no memory for one more layer")
        installed(*args)

    monkeypatch.setattr(live, "install", install)
    with pytest.raises(MemoryError):
        prosparse.accelerate(model)
    assert_same(fingerprint(model), before)


def test_two_models_and_their_counts_stay_apart(model: Any, reference: Any, tiny: Callable[..., Any]) -> None:
    other = prosparse.accelerate(tiny(hidden_act="relu2"))
    prosparse.accelerate(model)
    expected = generate(reference)
    other.generate(PROMPT % 64, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(generate(model), expected)
    assert prosparse.stats(model)["decode_tokens"] == 11
    assert prosparse.stats(other)["decode_tokens"] == 4
    prosparse.restore(other)
    assert torch.equal(generate(model), expected)


def test_the_number_of_threads_is_the_callers(
    model: Any, monkeypatch: pytest.MonkeyPatch, threads: None, llama_folder: Path
) -> None:
    """`prosparse.load` takes no more than can run at once; a program that runs a model of its own has chosen."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "processors", lambda: SimpleNamespace(threads=1))
    torch.set_num_threads(2)
    generate(prosparse.accelerate(model))
    with prosparse.patched():
        generate(AutoModelForCausalLM.from_pretrained(llama_folder))
    assert torch.get_num_threads() == 2
    prosparse.load(llama_folder)
    assert torch.get_num_threads() == 1


def test_threads_may_share_a_model(model: Any, reference: Any) -> None:
    expected = generate(reference)
    prosparse.accelerate(model)
    results: list[Tensor | None] = [None] * 4

    def run(i: int) -> None:
        results[i] = generate(model)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None and torch.equal(result, expected) for result in results)


def test_copies_and_pickles_stay_accelerated(model: Any, reference: Any) -> None:
    expected = generate(reference)
    prosparse.accelerate(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(generate(twin), expected)
        assert prosparse.stats(twin)["decode_tokens"] == 11
        prosparse.restore(twin)
        assert torch.equal(generate(twin), expected)
    assert prosparse.stats(model)["decode_tokens"] == 0, "the copies count for themselves"


def test_gradients_are_those_of_the_model(model: Any, reference: Any) -> None:
    ids = PROMPT[:, :6]
    reference = copy.deepcopy(reference)
    for which in (reference, prosparse.accelerate(model)):
        which(ids, labels=ids).loss.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert prosparse.stats(model)["decode_tokens"] == 0


def test_other_dtypes_than_the_weights_run_dense(model: Any, reference: Any) -> None:
    prosparse.accelerate(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(PROMPT[:, :4]).logits, reference(PROMPT[:, :4]).logits, rtol=0.05, atol=0.05)


def test_stays_accelerated_when_cast(model: Any, reference: Any, op_calls: Any) -> None:
    prosparse.accelerate(model).to(torch.bfloat16)
    with torch.no_grad(), op_calls:
        expected = copy.deepcopy(reference).to(torch.bfloat16)(PROMPT[:, :4]).logits
        actual = model(PROMPT[:, :4]).logits
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)
    assert op_calls.names == ["glu_exact"] * 3
    assert prosparse.stats(model)["decode_tokens"] == 0, "a short prompt is not counted"


def test_stats_count_exact_zeros_of_decode_tokens(model: Any, reference: Any) -> None:
    layers = reference.model.layers
    zeros = [0] * len(layers)

    def count(i: int) -> Any:
        def hook(_: Any, args: tuple[Tensor]) -> None:
            if args[0].shape[1] == 1:
                zeros[i] += int((args[0] == 0).sum())

        return hook

    handles = [layer.mlp.down_proj.register_forward_pre_hook(count(i)) for i, layer in enumerate(layers)]
    generate(reference)
    for handle in handles:
        handle.remove()
    prosparse.accelerate(model)
    generate(model)
    stats = prosparse.stats(model, reset=True)
    expected = [round(n / (11 * 100), 6) for n in zeros]
    assert stats["decode_tokens"] == 11
    assert stats["activation_sparsity"]["layers"] == expected and 0.2 < min(expected)
    assert stats["activation_sparsity"]["mean"] == pytest.approx(sum(expected) / 3, abs=1e-6)
    again = prosparse.stats(model)
    assert again["decode_tokens"] == 0 and again["activation_sparsity"] is None


def test_dense_mode_runs_the_dense_kernels(model: Any, reference: Any) -> None:
    prosparse.accelerate(model, mode="dense")
    assert torch.equal(generate(model), generate(reference))
    assert prosparse.stats(model)["decode_tokens"] == 11
    prosparse.accelerate(model, mode="exact")  # changes the mode and starts counting anew
    assert model.model.layers[0].mlp.mode == "exact" and prosparse.stats(model)["decode_tokens"] == 0
    assert torch.equal(generate(model), generate(reference))


def test_silu_is_told_that_there_is_nothing_to_skip(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Any]
) -> None:
    model = tiny(hidden_act="silu")
    before = fingerprint(model)
    monkeypatch.setattr(live.log, "propagate", True)
    prosparse.accelerate(model)
    assert_same(fingerprint(model), before)
    assert len(caplog.records) == 1 and "silu, which makes no exact zeros" in caplog.text
    with pytest.raises(UserError, match="mode exact needs an activation that makes exact zeros.*silu"):
        prosparse.accelerate(model, mode="exact")
    expected = model(PROMPT[:, :4] % 64).logits
    with torch.no_grad():
        actual = prosparse.accelerate(model, mode="dense")(PROMPT[:, :4] % 64).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_gelu_and_models_without_gated_ffns(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Any]
) -> None:
    monkeypatch.setattr(live.log, "propagate", True)
    gelu = tiny(hidden_act="gelu")
    prosparse.accelerate(gelu)
    assert "model.layers.0.mlp: its activation GELUActivation makes no exact zeros" in caplog.text
    with pytest.raises(UnsupportedError, match="no FFN that prosparse runs.*GELUActivation"):
        prosparse.accelerate(gelu, mode="dense")
    with pytest.raises(UnsupportedError, match="gate_proj, up_proj, down_proj and act_fn"):
        prosparse.accelerate(nn.Sequential(nn.Linear(4, 4)), mode="exact")
    with pytest.raises(UserError, match="mode is 'fast'; supported are auto, dense, exact"):
        prosparse.accelerate(gelu, mode="fast")
    with pytest.raises(UserError, match="not accelerated"):
        prosparse.stats(gelu)
    assert prosparse.restore(gelu) is gelu
