"""What a user sees of generation: text, streaming, stopping, limits, batches, threads, errors."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engine import make_model
from tiny_tokenizer import write_tokenizer

import prosparse
from prosparse.config import SamplingParams
from prosparse.engine import Engine, Generation
from prosparse.errors import CheckpointError, MachineError, UserError

STORY_MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"
PROMPT = "Once upon a time there was a little"


@pytest.fixture(scope="module")
def story() -> Engine:
    """A small trained model, which writes words."""
    return prosparse.load(STORY_MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", max_position=64)


@pytest.fixture(scope="module")
def noise(folder: Path) -> Engine:
    """A random model, which writes bytes of which many make no character."""
    return prosparse.load(folder, weights="fp32")


def continued(engine: Engine, **options: object) -> Generation:
    return engine.generate(PROMPT, **{"max_new_tokens": 40, "ignore_eos": True, **options})


def test_pieces_of_a_stream_join_to_the_text(story: Engine, noise: Engine) -> None:
    for engine in (story, noise):
        for seed in range(6):
            options = {
                "max_new_tokens": 25,
                "temperature": 1.2,
                "seed": seed,
                "stop": ("e b", "zz"),
                "ignore_eos": True,
            }
            pieces = list(engine.stream("a small dog", **options))
            assert "".join(pieces) == engine.generate("a small dog", **options).text
            assert all(pieces) and len(pieces) > 1


def test_text_is_the_decoding_of_the_tokens(story: Engine) -> None:
    result = continued(story)
    assert len(result.token_ids) == 40 and result.finish_reason == "length"
    assert result.text == story.tokenizer.decode(result.token_ids)


def test_stop_strings_end_the_text_wherever_they_cross_tokens(story: Engine) -> None:
    text = continued(story).text
    for start in range(1, len(text) - 6, 5):
        stop = text[start : start + 6]
        result = continued(story, stop=stop)
        assert result.text == text[: text.find(stop)], stop
        assert result.finish_reason == "stop"
        assert "".join(story.stream(PROMPT, max_new_tokens=40, ignore_eos=True, stop=stop)) == result.text


def test_a_stop_string_completed_by_the_last_token_is_a_stop(story: Engine) -> None:
    text = continued(story).text
    result = continued(story, stop=text[-4:])
    assert result.finish_reason == "stop" and result.text == text[: text.find(text[-4:])]


def test_text_held_back_for_a_stop_string_is_given_at_the_end(story: Engine) -> None:
    text = continued(story).text
    assert continued(story, stop=text[-3:] + "\x00").text == text


def test_end_of_sequence_ids_of_config_and_generation_config(story: Engine, tmp_path: Path) -> None:
    ids = continued(story).token_ids
    first, second = ids[12], ids[20]
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(STORY_MODEL / name)
    config = json.loads((STORY_MODEL / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [4000, second]}))
    result = prosparse.load(tmp_path).generate(PROMPT, max_new_tokens=40)
    assert result.finish_reason == "eos"
    assert result.token_ids == ids[: ids.index(second) + 1]
    assert result.text == story.tokenizer.decode(ids[: ids.index(second)])

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [first]}))
    engine = prosparse.load(tmp_path)
    assert engine.generate(PROMPT, max_new_tokens=40).token_ids == ids[: min(ids.index(first), ids.index(second)) + 1]
    assert continued(engine).token_ids == ids


@pytest.mark.parametrize("n", [1, 2, 7])
def test_max_new_tokens(noise: Engine, n: int) -> None:
    result = noise.generate("ab", max_new_tokens=n, ignore_eos=True)
    assert len(result.token_ids) == n and result.finish_reason == "length"
    assert result.stats["decode_tokens"] == n - 1 and result.stats["prefill_tokens"] == 3
    if n == 1:
        assert (
            result.stats["activation_sparsity"]
            is result.stats["tokens_per_s"]
            is result.stats["bytes_per_token"]
            is None
        )


def test_prompt_and_text_stay_within_the_context(folder: Path) -> None:
    engine = prosparse.load(folder, weights="fp32", context=20)
    for prompt_tokens in (1, 12, 19):
        prompt = [1, *[5] * (prompt_tokens - 1)]
        for limit in (None, 50):
            result = engine.generate(prompt, max_new_tokens=limit, ignore_eos=True)
            assert len(result.token_ids) == 20 - prompt_tokens and result.finish_reason == "length"
    with pytest.raises(UserError, match="prompt 0 has 20 tokens.*context of 20.*--context"):
        engine.generate([5] * 20)
    with pytest.raises(UserError, match="prompt 1 has 21 tokens"):
        engine.generate([[5], [5] * 21])
    with pytest.raises(UserError, match="21 tokens are more than the context of 20"):
        engine.logits([5] * 21)
    assert engine.logits([5] * 20).shape == (20, 259)


@pytest.mark.parametrize("context", [0, 1, -5, 65, 2.5, True])
def test_a_context_that_the_model_cannot_have(folder: Path, context: object) -> None:
    with pytest.raises(UserError, match="context must be from 2 to 64"):
        prosparse.load(folder, context=context)  # type: ignore[arg-type]


def test_prompts_may_be_text_ids_arrays_and_tensors(noise: Engine) -> None:
    ids = noise.tokenizer.encode("abc")
    expected = noise.generate("abc", max_new_tokens=5).token_ids
    forms = [ids, tuple(ids), np.array(ids), list(np.array(ids)), torch.tensor(ids)]
    for form in forms:
        assert noise.generate(form, max_new_tokens=5).token_ids == expected
    together = noise.generate([ids, "abc", np.array(ids)], max_new_tokens=5)
    assert [result.token_ids for result in together] == [expected] * 3


def test_an_empty_text_starts_from_bos_where_there_is_one(noise: Engine, folder: Path, tmp_path: Path) -> None:
    assert noise.generate("", max_new_tokens=4).token_ids == noise.generate([1], max_new_tokens=4).token_ids
    copy = make_model(tmp_path / "model", bos_token_id=-1)
    write_tokenizer(copy, bos=False)
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(UserError, match="prompt 0 is empty.*no BOS"):
        prosparse.load(copy).generate("")


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([5, 259], {}, "prompt 0 holds token id 259; this model knows 0 to 258"),
        ([-1], {}, "prompt 0 holds token id -1"),
        ([[5], [2**40]], {}, "prompt 1 holds token id 1099511627776"),
        ([], {}, "no prompt was given"),
        (["a", []], {}, "prompt 1 holds no token ids"),
        ([1.5, 2.5], {}, "prompt 0 must be a text or a sequence of whole numbers"),
        ([1, 2.5], {}, "prompt 0 must be a text or a sequence of whole numbers"),
        (None, {}, "pass either a prompt or inputs_embeds, got neither"),
        (torch.ones(1, 3, dtype=torch.int64), {}, "prompt 0 must be a text or a sequence of whole numbers"),
        ("a\ud800", {}, "lone surrogate"),
        ("a", {"max_tokens": 3}, "unknown option 'max_tokens'; did you mean max_new_tokens"),
        ("a", {"wibble": 3}, "unknown option 'wibble'; known are max_new_tokens"),
        ("a", {"sampling": "nucleus"}, "sampling is 'nucleus'"),
        ("a", {"params": SamplingParams(), "seed": 3}, "either params or single options"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ("a", {"temperature": float("nan")}, "temperature must be a finite number"),
        ("a", {"temperature": "hot"}, "temperature must be a finite number"),
        ("a", {"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ("a", {"stop": ""}, "stop must be .*strings"),
    ],
)
def test_wrong_input_is_named(noise: Engine, prompt: object, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        noise.generate(prompt, **options)  # type: ignore[arg-type]


def test_a_stream_takes_one_prompt(noise: Engine) -> None:
    with pytest.raises(UserError, match="takes one prompt"):
        noise.stream(["a", "b"])
    with pytest.raises(UserError, match="unknown option"):
        noise.stream("a", max_tokens=3)  # at the call, not at the first piece


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_becomes_the_same_text_alone_and_beside_others(story: Engine, temperature: float) -> None:
    """20 prompts of different lengths and ends, so that slots are refilled while others go on."""
    words = PROMPT.split() + ["the king", "a dog and", "he said", "no", "it was", "my dear"]
    prompts = [" ".join(words[i % 9 : i % 9 + 1 + i % 5]) for i in range(20)]
    options = {"max_new_tokens": 24, "temperature": temperature, "seed": 7, "stop": ("ing", ".")}
    alone = [story.generate(prompt, **options) for prompt in prompts]
    assert len({result.text for result in alone}) > 10 and len({len(result.token_ids) for result in alone}) > 5
    for n in (2, 5, 20):
        together = story.generate(prompts[:n], **options)
        assert [(r.text, r.token_ids, r.finish_reason) for r in together] == [
            (r.text, r.token_ids, r.finish_reason) for r in alone[:n]
        ]


def test_the_same_seed_gives_the_same_text(noise: Engine) -> None:
    options = {"max_new_tokens": 20, "temperature": 1.0, "ignore_eos": True}
    assert noise.generate("a", seed=3, **options).token_ids == noise.generate("a", seed=3, **options).token_ids
    assert noise.generate("a", seed=3, **options).token_ids != noise.generate("a", seed=4, **options).token_ids
    assert noise.generate("a", **options).token_ids != noise.generate("a", **options).token_ids
    one, other = noise.generate(["a", "a"], **options)
    assert one.token_ids != other.token_ids


def test_two_threads_share_an_engine(story: Engine) -> None:
    prompts = ["The king said", "A little dog", "In the garden", "He was"]
    options = {"max_new_tokens": 30, "temperature": 0.8, "seed": 5}
    expected = [story.generate(prompt, **options).text for prompt in prompts]
    found: dict[int, str] = {}

    def work(n: int) -> None:
        found[n] = "".join(story.stream(prompts[n], **options)) if n % 2 else story.generate(prompts[n], **options).text

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[n] for n in range(4)] == expected


def test_an_abandoned_stream_does_no_harm(story: Engine) -> None:
    expected = continued(story).text
    for pieces in (0, 1, 3):
        stream = story.stream(PROMPT, max_new_tokens=40)
        for _ in range(pieces):
            next(stream)
        stream.close()
        assert not torch.is_inference_mode_enabled()
    assert continued(story).text == expected


def test_the_model_s_own_sampling_options(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_k": 5}))
    try:
        engine = prosparse.load(folder, weights="fp32")
    finally:
        (folder / "generation_config.json").unlink()
    options = {"max_new_tokens": 12, "seed": 2}
    drawn = engine.generate("a", sampling="model", **options)
    assert drawn.token_ids == engine.generate("a", temperature=0.9, top_k=5, **options).token_ids
    assert drawn.token_ids != engine.generate("a", **options).token_ids


def test_weights_that_are_not_finite_are_not_loaded(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.layers.1.mlp.up_proj.weight"):
        prosparse.load(folder)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("part", ["lm_head", "gate", "up", "down", "qkv", "norm"])
def test_nan_in_the_network_ends_in_an_error(tmp_path: Path, part: str, temperature: float) -> None:
    engine = prosparse.load(make_model(tmp_path / "model"), weights="fp32")
    attention, ffn = engine.decoder.blocks[1]
    tensors = {
        "lm_head": engine.decoder.lm_head.codes, "gate": ffn.gate.codes, "up": ffn.up.codes, "down": ffn.down.codes,
        "qkv": attention.qkv.codes, "norm": ffn.norm,
    }  # fmt: skip
    tensors[part].fill_(float("nan"))
    with pytest.raises(MachineError, match="logits are not finite.*259 NaN"):
        engine.generate("abc", max_new_tokens=3, temperature=temperature)
    with pytest.raises(MachineError, match="logits are not finite"):
        list(engine.stream("a longer prompt than sixteen tokens", max_new_tokens=3))


def test_progress_counts_the_tokens_of_a_prompt(noise: Engine) -> None:
    seen: list[tuple[int, int]] = []
    ids = [5] * 20
    noise.generate(ids, max_new_tokens=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 20)]
    list(noise.stream(ids, max_new_tokens=1, progress=lambda done, total: seen.append((done, total))))
    assert seen[1:] == [(20, 20)]


def test_bytes_are_no_prompt(noise: Engine) -> None:
    with pytest.raises(UserError, match="prompt 0 is bytes"):
        noise.generate(b"abc")
