"""Every way to generate with transformers gives, on an accelerated model, what the untouched model gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextIteratorStreamer, set_seed
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import prosparse

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


def test_saved_and_reloaded(reference: Any, model: Any, tmp_path: Path) -> None:
    expected = greedy(reference)
    prosparse.accelerate(model).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(greedy(again), expected)
    assert torch.equal(greedy(prosparse.accelerate(again)), expected)
    assert torch.equal(greedy(model), expected), "saving changes nothing"


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


def test_continuous_batching(reference: Any, model: Any) -> None:
    """`generate_batch` itself, with a cache small enough for a test."""
    prompts = [[1, 40, 41, 42, 90], [1, 9, 33, 71, 5, 17, 18], [1, 7, 19]]
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=-1)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)

    def generate(which: Any) -> list[list[int]]:
        out = which.generate_batch(
            prompts, generation_config=config, continuous_batching_config=small, warmup=False, progress_bar=False
        )
        return sorted(result.generated_tokens for result in out.values())

    expected = generate(copy.deepcopy(reference))
    prosparse.accelerate(model)
    assert generate(model) == expected and len(expected) == 3
