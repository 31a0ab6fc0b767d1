"""Steps that run ahead of the host: the same texts and counts as one by one, whenever a text ends."""

from __future__ import annotations

import contextlib

import pytest
import torch
from steps_by_hand import CalledAgain, DecoderStep
from tiny_engine import make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.engine.chain import CudaGraph
from prosparse.engine.graph import LATE, StepPool, Steps
from prosparse.engine.session import Session
from prosparse.errors import MachineError
from prosparse.model.cache import KVCache
from prosparse.model.decoder import Ends
from prosparse.model.step import unfit, why_no_step

PROMPT = some_tokens(9)
TEXT = ("activation_sparsity", "prefill_tokens", "decode_tokens", "bytes_per_token")  # stats that no clock decides


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return prosparse.load(make_model(tmp_path_factory.mktemp("model") / "model"), weights="fp32", context=96)


class Watched(StepPool):
    """A pool whose steps are remembered."""

    def __init__(self, engine: Engine, graph=CalledAgain) -> None:
        self.made: list[DecoderStep] = []
        super().__init__(engine.decoder, engine.kv_dtype, self.make, graph)

    def make(self, *given) -> DecoderStep:
        self.made.append(DecoderStep(*given))
        return self.made[-1]

    @property
    def calls(self) -> int:
        return sum(step.calls for step in self.made)


def over(plain: Engine, pool: StepPool | None) -> Engine:
    return Engine(plain.decoder, plain.tokenizer, plain.plan, plain.model_sampling, plain.kv_dtype, pool=pool)


def told(engine: Engine, result) -> tuple:
    results = result if isinstance(result, list) else [result]
    return [(r.text, r.token_ids, r.finish_reason, {k: r.stats[k] for k in TEXT}) for r in results]


def without_eos(**options) -> dict:
    return {"ignore_eos": True, **options}


@pytest.mark.parametrize("tokens", [1, 2, LATE + 1, LATE + 2, 3 * LATE + 5])
def test_the_same_text_and_no_step_too_many(plain: Engine, tokens: int) -> None:
    """Where the end is known, nothing is launched in vain; the places of what is read are used again and again."""
    pool = Watched(plain)
    engine, options = over(plain, pool), without_eos(max_new_tokens=tokens)
    assert told(engine, engine.generate(PROMPT, **options)) == told(plain, plain.generate(PROMPT, **options))
    assert pool.calls == (tokens - 1) + bool(tokens > 1)  # and the one of the warm-up


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_a_stop_drops_what_was_launched_after_it(plain: Engine, at: int) -> None:
    free = plain.generate(PROMPT, **without_eos(max_new_tokens=24))
    eos = free.token_ids[at]
    stop = free.token_ids.index(eos)  # where it comes first
    pool = Watched(plain)
    engine = over(plain, pool)
    patched = plain.tokenizer.eos_ids
    plain.tokenizer.eos_ids = frozenset({eos})
    try:
        for _ in range(2):  # the second run finds nothing of the first
            expected = plain.generate(PROMPT, max_new_tokens=24)
            result = engine.generate(PROMPT, max_new_tokens=24)
            assert told(engine, result) == told(plain, expected)
            assert result.finish_reason == "eos" and len(result.token_ids) == stop + 1
    finally:
        plain.tokenizer.eos_ids = patched
    assert len(pool.made) == (1 if stop else 0), "the second run has the graph of the first"
    assert pool.calls == (2 * min(stop + LATE, 23) + 1 if stop else 0)


def test_several_texts_that_end_at_different_times(plain: Engine) -> None:
    """A stop string ends one of them in the middle of steps launched for all; the others go on in their slots."""
    prompts = [some_tokens(n, seed=n) for n in (3, 9, 5, 2)]
    texts = [r.text for r in plain.generate(prompts, **without_eos(max_new_tokens=20))]
    options = without_eos(max_new_tokens=20, stop=(texts[1][8:11], texts[3][14:16]))
    pool = Watched(plain)
    engine = over(plain, pool)
    expected = plain.generate(prompts, **options)
    assert len({len(r.token_ids) for r in expected}) > 1
    assert told(engine, engine.generate(prompts, **options)) == told(plain, expected)
    assert len(pool.made) > 1, "each number of sequences has a step of its own"


@pytest.mark.parametrize(
    "options", [{"temperature": 0.9, "seed": 3}, {"repetition_penalty": 1.4}], ids=["drawn", "penalty"]
)
def test_other_sampling_comes_after_each_step(plain: Engine, options: dict) -> None:
    pool = Watched(plain)
    engine, options = over(plain, pool), without_eos(max_new_tokens=12, **options)
    prompts = [PROMPT, some_tokens(4)]
    assert told(engine, engine.generate(prompts, **options)) == told(plain, plain.generate(prompts, **options))
    assert pool.calls == 11 + 1


def test_streaming_and_leaving_early(plain: Engine) -> None:
    engine, options = over(plain, Watched(plain)), without_eos(max_new_tokens=16)
    expected = plain.generate(PROMPT, **options)
    pieces = engine.stream(PROMPT, **options)
    next(pieces)
    pieces.close()  # its steps are lent again
    assert "".join(engine.stream(PROMPT, **options)) == expected.text
    assert engine.stats["activation_sparsity"] == expected.stats["activation_sparsity"]


def test_two_runs_at_once_have_caches_of_their_own(plain: Engine) -> None:
    engine, options = over(plain, Watched(plain)), without_eos(max_new_tokens=10)
    other = some_tokens(5, seed=7)
    expected = [plain.generate(prompt, **options).text for prompt in (PROMPT, other)]
    streams = [engine.stream(prompt, **options) for prompt in (PROMPT, other)]
    texts = ["", ""]
    for pieces in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    texts = [text + "".join(rest) for text, rest in zip(texts, streams, strict=True)]
    assert [len(text) > 0 for text in texts] == [True, True]
    assert all(whole.startswith(text[: len(text) - 1]) for text, whole in zip(texts, expected, strict=True))


def test_a_larger_cache_replaces_a_smaller_one_and_is_kept(plain: Engine) -> None:
    pool = Watched(plain)
    small = pool.lend(1, 32)
    pool.take_back(small)
    assert pool.lend(1, 16) is small
    large = pool.lend(3, 32)
    pool.take_back(large)
    pool.take_back(small)
    assert pool.lend(2, 32) is large


def test_no_graph_is_one_line_and_the_same_text(plain: Engine, caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(CalledAgain):
        def capture(self, function) -> None:
            super().capture(function)
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            finally:
                raise ValueError("the end of a recording that failed")

    engine, options = over(plain, Watched(plain, Refuses)), without_eos(max_new_tokens=6)
    expected = told(plain, plain.generate(PROMPT, **options))
    for _ in range(2):
        assert told(engine, engine.generate(PROMPT, **options)) == expected
    (record,) = caplog.records
    assert record.message == (
        "engine: no CUDA graph (RuntimeError: operation not permitted when stream is capturing); decoding op by op"
    )


def test_logits_that_are_not_finite_are_refused(plain: Engine) -> None:
    class Broken(DecoderStep):
        def __call__(self) -> None:
            super().__call__()
            if self.calls > 3:
                self.peaks.fill_(float("nan"))

    engine = over(plain, StepPool(plain.decoder, plain.kv_dtype, Broken, CalledAgain))
    with pytest.raises(MachineError, match=r"the largest is nan\); the weights hold such values"):
        engine.generate(PROMPT, **without_eos(max_new_tokens=9))


def test_positions_come_from_the_step_alone(plain: Engine) -> None:
    """Between `begin` and `keep` the host says nothing: ids and starts go from step to step, also when taken back."""
    session = Session(plain.decoder, plain.kv_dtype, 2, 64)
    hidden = list(session.prefill(torch.tensor(PROMPT), slot=1))[-1]
    cache = KVCache(plain.config, 2, 64, plain.kv_dtype, torch.device("cpu"))
    cache.keys.copy_(session.cache.keys)
    cache.values.copy_(session.cache.values)
    ahead = Steps(plain.decoder, cache, DecoderStep, CalledAgain)
    token, expected = plain.decoder.logits(hidden[-1:]).argmax(-1), []
    for number in range(8):
        expected.append(int(token))
        token = session.decode(token[:, None], (1,), (9 + number,)).argmax(-1)
    ids = torch.tensor(expected)
    assert ahead.begin(ids[:1], (1,), (9,))
    for number in range(4):
        ahead.launch()
        assert list(ahead.read(number)[0]) == expected[number + 1 : number + 2]
    ahead.keep(2)
    tally = ahead.tally.clone()
    assert ahead.begin(ids[2:3], (1,), (11,))
    for _ in range(LATE + 1):
        ahead.launch()
    assert [list(ahead.read(number)[0])[0] for number in range(3)] == expected[3:6]
    ahead.keep(1)
    fresh = Session(plain.decoder, plain.kv_dtype, 2, 64)
    fresh.cache.keys.copy_(session.cache.keys)
    fresh.cache.values.copy_(session.cache.values)
    for number in range(3):
        if number == 2:
            assert torch.equal(fresh.tally, tally)
        fresh.decode(ids[number : number + 1][:, None], (1,), (9 + number,))
    assert torch.equal(fresh.tally, ahead.tally)
    with pytest.raises(AssertionError, match="taken by a later step"):
        ahead.read(3)


def test_says_what_keeps_steps_from_being_recorded(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfit(plain.decoder) is None
    assert why_no_step(plain.decoder) == "the model is on cpu"
    monkeypatch.setattr(plain.decoder.blocks[0][0], "o_bias", torch.zeros(1))
    assert unfit(plain.decoder) == "llama has biases that the step does not know"
    monkeypatch.setattr(plain.decoder, "ends", Ends(positions=torch.zeros(1, 1)))
    assert unfit(plain.decoder) == "llama has blocks or ends that the step does not know"


def test_runs_inside_and_outside_of_inference_mode(plain: Engine) -> None:
    engine = over(plain, Watched(plain))
    expected = told(plain, plain.generate(PROMPT, **without_eos(max_new_tokens=4)))
    for inside in (True, False, True):
        with torch.inference_mode(inside):
            assert told(engine, engine.generate(PROMPT, **without_eos(max_new_tokens=4))) == expected


def test_recorded_steps_try_no_drafts(plain: Engine, caplog: pytest.LogCaptureFixture) -> None:
    prompt, options = PROMPT * 3, without_eos(max_new_tokens=12)
    with caplog.at_level("INFO", "prosparse"):
        found = over(plain, Watched(plain)).generate(prompt, **options, prompt_lookup=4)
    assert told(plain, found) == told(plain, plain.generate(prompt, **options))
    assert found.stats["prompt_lookup"] == {"drafted": 0, "accepted": 0}
    assert "prompt_lookup does nothing" in caplog.text


class Streams:
    """torch.cuda as far as a recording goes; one that fails leaves its stream behind, as that of PyTorch 2.11 does."""

    def __init__(self) -> None:
        self.current = "here"

    def current_stream(self):
        return Stream(self.current)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, capture_error_mode):
        self.current = "recording"
        yield
        self.current = "here"


class Stream:
    def __init__(self, name: str = "side") -> None:
        self.name = name

    def wait_stream(self, other) -> None:
        pass


def test_a_recording_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, seen = Streams(), []
    for name in ("current_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)

    def work() -> None:
        seen.append(streams.current)
        if seen[-1] == "recording":
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        CudaGraph(pool=None).capture(work)
    assert seen == ["side", "recording"] and streams.current == "here"
