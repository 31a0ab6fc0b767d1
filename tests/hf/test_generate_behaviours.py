"""Every way to generate with transformers gives, on an accelerated model, what the untouched model gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, TextIteratorStreamer, set_seed

import prosparse
from prosparse.kernels.tally import NONZERO

PROMPT = torch.tensor([[1, 40, 41, 42, 90, 91, 92, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24]])
PADDED = torch.tensor([[0] * 7 + [1, 9, 33, 71, 5], [1, 7, 19, 28, 64, 99, 12, 50, 77, 31, 8, 14]])
LENGTH = {"max_new_tokens": 16, "pad_token_id": 0, "eos_token_id": None}


def greedy(model: Any, **options: Any) -> Tensor:
    return model.generate(PROMPT, do_sample=False, **LENGTH, **options)


def sample(model: Any, **options: Any) -> Tensor:
    set_seed(11)
    return model.generate(PROMPT, do_sample=True, temperature=0.8, top_k=20, top_p=0.9, **LENGTH, **options)


def group(model: Any, prompts: Tensor = PADDED, **options: Any) -> Tensor:
    """A left-padded batch."""
    return model.generate(prompts, attention_mask=(prompts != 0).long(), do_sample=False, **LENGTH, **options)


def large_group(model: Any) -> Tensor:
    """More sequences than the ops take tokens: its decode steps stay dense."""
    return group(model, PADDED.repeat(9, 1))


def assisted(model: Any) -> Tensor:
    helper = copy.deepcopy(model)
    with torch.no_grad():
        helper.model.layers[0].mlp.up_proj.weight.mul_(1.05)  # agrees often, not always
    return greedy(model, assistant_model=helper)


def scores(model: Any) -> Tensor:
    out = greedy(model, output_scores=True, return_dict_in_generate=True, output_hidden_states=True)
    return torch.stack(out.scores).argmax(-1)


BEHAVIOURS: dict[str, Callable[[Any], Tensor]] = {
    "greedy": greedy,
    "sample": sample,
    "several-samples": lambda model: sample(model, num_return_sequences=3),
    "beam": lambda model: greedy(model, num_beams=4),
    "beam-sample": lambda model: sample(model, num_beams=2),
    "group": group,
    "large-group": large_group,
    "group-beam": lambda model: group(model, num_beams=3),
    "assisted": assisted,
    "prompt-lookup": lambda model: greedy(model, prompt_lookup_num_tokens=3),
    "static-cache": lambda model: greedy(model, cache_implementation="static"),
    "no-cache": lambda model: greedy(model, use_cache=False),
    "penalties": lambda model: greedy(model, repetition_penalty=1.3, no_repeat_ngram_size=2),
    "scores": scores,
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_equals_the_untouched_model(name: str, reference: Any, model: Any, op_calls: Any) -> None:
    behaviour = BEHAVIOURS[name]
    expected = behaviour(reference)
    prosparse.accelerate(model)
    with op_calls:
        actual = behaviour(model)
    assert torch.equal(actual, expected)
    assert set(op_calls.names) == (set() if name in ("large-group", "no-cache") else {"glu_exact"})
    prosparse.restore(model)
    assert torch.equal(behaviour(model), expected)


def test_streamer_gives_the_same_text(reference: Any, model: Any, llama_folder: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)

    def text(which: Any) -> str:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        greedy(which, streamer=streamer)
        return "".join(streamer)

    expected = text(reference)
    assert expected and text(prosparse.accelerate(model)) == expected


def test_packed_sequences_of_continuous_batching(reference: Any, model: Any, op_calls: Any) -> None:
    """generate_batch sends the tokens of several sequences as one row, here with the mask that keeps them apart."""
    ids = torch.tensor([[1, 40, 41, 1, 90, 91, 92]])
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    seen = (owner[:, None] == owner) & torch.ones(7, 7, dtype=torch.bool).tril()
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    prosparse.accelerate(model)
    with torch.no_grad(), op_calls:
        expected = reference(ids, position_ids=position_ids, attention_mask=mask).logits
        actual = model(ids, position_ids=position_ids, attention_mask=mask).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert op_calls.names == ["glu_exact"] * 3


def test_static_cache_decode_compiles_into_one_graph(reference: Any, model: Any) -> None:
    expected = greedy(reference)
    prosparse.accelerate(model)
    graphs: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append("glu_exact" in str(graph.graph))
        return graph.forward

    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False, backend=backend)
    actual = greedy(model, cache_implementation="static", disable_compile=True)
    assert torch.equal(actual, expected)
    assert prosparse.stats(model)["decode_tokens"] == LENGTH["max_new_tokens"] - 1
    assert graphs == [False, True], "one dense graph for the prompt and a sparse one for all decode steps"


def test_ffn_compiles_functionalised(reference: Any, model: Any) -> None:
    """aot_eager traces with fake tensors and functionalises the counter's mutation, as inductor does."""
    x = torch.randn(1, 1, 64)
    mlp = prosparse.accelerate(model).model.layers[0].mlp
    torch.compiler.reset()
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = reference.model.layers[0].mlp(x)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
    assert int(mlp.prosparse_tokens) == 3
    assert 0 < int(mlp.prosparse_tally[NONZERO]) < 3 * 100
