"""Steps of a model on two tiers as graphs with the host's part between them: all that is decoded layer by layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from placed_plans import placed, predictor_of, some_profile
from shared_by_hand import LaunchesByHand, Lazy, LazyGraph, LazyMark
from steps_by_hand import CalledAgain
from tiny_engine import make_model, some_tokens

import prosparse
from prosparse.engine import Engine
from prosparse.engine.chain import Chain
from prosparse.engine.graph import StepPool, Steps
from prosparse.engine.session import Session
from prosparse.engine.shared_step import SharedStep
from prosparse.engine.tallies import parts_of
from prosparse.hardware import PRESETS
from prosparse.model.step import unfit, why_no_step
from prosparse.placement.simulate import simulate
from prosparse.sparsity.mailbox import Mailbox
from prosparse.weights.neuron_profile import Profile

N = 96  # neurons of the tiny model
IDS = some_tokens(9)
# (gate, hot, attention) of three layers
SPLITS = {
    "gates first": [(N, 32), (N, 0), (N, N)],
    "all on the fast tier": [(N, N)] * 3,
    "attention alone": [(0, 0)] * 3,
    "layers and cuts": [(0, 0, False), (48, 17), (N, 1)],
    "slow between fast": [(50, 50), (0, 0, False), (50, 20)],
    "slow at the end": [(50, 50), (N, N), (0, 0, False)],
}
# graphs of a step: one for each shared layer and what follows the last, one for hot neurons, one more where the host
# starts before it has the list; a slow layer parts what is before it from what is behind it
GRAPHS = {
    "gates first": 2 + 1 + 1,
    "all on the fast tier": 1,
    "attention alone": 4,
    "layers and cuts": 3 + 2 + 1,
    "slow between fast": 2 + 1 + 3 + 1,
    "slow at the end": 2 + 1,
}


@pytest.fixture(scope="module", params=["llama", "tied minicpm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    extra = {} if request.param == "llama" else {"family": "minicpm", "tied": True}
    return make_model(tmp_path_factory.mktemp("model") / "m", layers=3, **extra)


@pytest.fixture(scope="module")
def undivided(folder: Path) -> Engine:
    return prosparse.load(folder, weights="fp32")


@pytest.fixture(scope="module")
def profile(undivided: Engine) -> Profile:
    return some_profile(undivided)


BY_HAND = partial(SharedStep, launches=LaunchesByHand)


def on_two(folder: Path, undivided: Engine, profile: Profile, splits: list, mode: str = "exact", **options) -> Engine:
    head = options.pop("head", True)
    plan = placed(undivided, profile, splits, mode, head=head)
    return prosparse.load(folder, plan=plan, profile=profile, device="cpu", **options)


def in_graphs(engine: Engine, graph=CalledAgain) -> Engine:
    pool = StepPool(engine.decoder, engine.kv_dtype, BY_HAND, graph)
    return Engine(engine.decoder, engine.tokenizer, engine.plan, engine.model_sampling, engine.kv_dtype, pool=pool)


def told(engine: Engine, prompt, **options) -> tuple:
    result = engine.generate(prompt, ignore_eos=True, **options)
    known = {key: value for key, value in result.stats.items() if key not in ("ttft_s", "tokens_per_s")}
    return result.text, result.token_ids, known


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("splits", SPLITS)
def test_texts_and_counts_are_those_of_layer_by_layer(folder, undivided, profile, splits: str, head: bool) -> None:
    plain = on_two(folder, undivided, profile, SPLITS[splits], head=head)
    ahead = in_graphs(plain)
    for prompt, options in [
        ("Once upon a time", {"max_new_tokens": 12}),
        (IDS, {"max_new_tokens": 7}),
        (IDS, {"max_new_tokens": 6, "temperature": 0.9, "seed": 3}),
        ([5], {"max_new_tokens": 6, "repetition_penalty": 1.4}),
    ]:
        assert told(ahead, prompt, **options) == told(plain, prompt, **options)
    assert ahead._pool._idle is not None and not ahead._pool._idle.failed


@pytest.mark.parametrize("kind", ["low_rank", "sign_bits"])
@pytest.mark.parametrize("cuts", [[(N, 32), (40, 40), (0, 0)], [(48, 16), (N, N), (0, 0, False)]], ids=str)
def test_predicted(folder, undivided, profile, kind: str, cuts: list) -> None:
    predictor = predictor_of(undivided, kind, 0.0)
    plain = on_two(folder, undivided, profile, cuts, "predicted", predictor=predictor)
    options = {"max_new_tokens": 8}
    assert told(in_graphs(plain), IDS, **options) == told(plain, IDS, **options)


def test_dense(folder, undivided, profile) -> None:
    plain = on_two(folder, undivided, profile, [(48, 16), (N, 33), (0, 0)], "dense")
    assert told(in_graphs(plain), IDS, max_new_tokens=6) == told(plain, IDS, max_new_tokens=6)


def decoded(engine: Engine, steps: int, sequences: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list]:
    """Logits of each step behind two prompts and ids that it chose, layer by layer; and what all of them did."""
    session = Session(engine.decoder, engine.kv_dtype, sequences, 32)
    filled(engine, session, sequences)
    ids, logits, taken = torch.arange(sequences) + 7, [], []
    for step in range(steps):
        taken.append(ids)
        logits.append(session.decode(ids[:, None], tuple(range(sequences)), starts_of(sequences, step)))
        ids = logits[-1].argmax(-1)
    return logits, taken, session.done


def starts_of(sequences: int, step: int) -> tuple[int, ...]:
    return tuple(5 + 2 * i + step for i in range(sequences))


def filled(engine: Engine, session: Session, sequences: int) -> None:
    for slot, start in enumerate(starts_of(sequences, 0)):
        list(session.prefill(torch.tensor(some_tokens(start, seed=slot)), slot=slot))


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("splits", ["gates first", "layers and cuts", "slow between fast"])
def test_logits_to_the_bit_of_several_sequences(folder, undivided, profile, splits: str, sequences: int) -> None:
    engine = on_two(folder, undivided, profile, SPLITS[splits])
    expected, taken, done = decoded(engine, 4, sequences)
    session = Session(engine.decoder, engine.kv_dtype, sequences, 32)
    filled(engine, session, sequences)
    steps = Steps(engine.decoder, session.cache, BY_HAND, CalledAgain)
    assert steps.begin(taken[0], tuple(range(sequences)), starts_of(sequences, 0))
    for number, logits in enumerate(expected):
        steps.launch()
        assert torch.equal(steps.logits, logits)
        assert list(steps.read(number)[0]) == logits.argmax(-1).tolist()
    session.tally = steps.tally
    assert session.done == done


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("splits", SPLITS)
def test_nothing_is_read_before_it_is_there_or_written_before_it_was_read(
    folder, undivided, profile, splits: str, head: bool
) -> None:
    """A device that computes as late as it can, while the host goes on as early as it can."""
    engine = on_two(folder, undivided, profile, SPLITS[splits], head=head)
    expected, taken, done = decoded(engine, 4, 1)
    session = Session(engine.decoder, engine.kv_dtype, 1, 32)
    filled(engine, session, 1)
    device, tally, seen = Lazy(), engine.decoder.new_tally(), []
    step = BY_HAND(engine.decoder, session.cache, tally, 1, new_mark=lambda: LazyMark(device))
    step.place((0,), starts_of(1, 0)), step.take(taken[0])
    chain = Chain(step.parts, lambda: LazyGraph(device, step))
    device.finish()
    assert chain.graphs == GRAPHS[splits] + graphs_of_the_ends(splits, head, engine.config.tied_embeddings)
    for part in parts_of(tally):
        part.zero_()
    step.place((0,), starts_of(1, 0)), step.take(taken[0])
    for _ in expected:
        chain.replay()
        if head:
            device.give(lambda: seen.append(step.logits.clone()))
        else:
            seen.append(step.logits)
    device.finish()
    assert all(torch.equal(*each) for each in zip(seen, expected, strict=True))
    session.tally = tally
    assert session.done == done


def graphs_of_the_ends(splits: str, head: bool, tied: bool) -> int:
    """lm_head on the fast device behind a slow layer is a graph of its own, and so is an embedding before one."""
    return int(head and splits == "slow at the end") + int(head and tied and splits == "layers and cuts")


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_the_simulator_launches_as_many_graphs(folder, undivided, profile, mode: str) -> None:
    """And is told so by layers of every kind, the slow one first, as plans have it."""
    cuts = [(0, 0, False), (48, 17), (N, 1)] if mode == "exact" else [(0, 0, False), (17, 17), (0, 0)]
    predictor = predictor_of(undivided, "low_rank", 0.0) if mode == "predicted" else None
    engine = on_two(folder, undivided, profile, cuts, mode, **({} if predictor is None else {"predictor": predictor}))
    steps = in_graphs(engine)._pool.lend(1, 32)
    assert steps.begin(torch.tensor([7]), (0,), (0,))
    ((_, chain),) = steps._recorded.values()
    found = simulate(engine.config, engine.plan, profile, PRESETS["8gb-pcie4"], predictor=predictor, tokens=2)
    embeds = int(engine.config.tied_embeddings)  # on the CPU, as the simulator has it, unless it is lm_head's table too
    assert found.graphs == chain.graphs - embeds


def test_places_stay_where_they_are(folder, undivided, profile, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Mailbox] = []

    class Watched(Mailbox):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            boxes.append(self)

    def held() -> list[int]:
        return [place.data_ptr() for box in boxes for places in box._places.values() for place in places]

    monkeypatch.setattr("prosparse.engine.shared_step.Mailbox", Watched)
    engine = in_graphs(on_two(folder, undivided, profile, SPLITS["layers and cuts"]))
    told(engine, IDS, max_new_tokens=2)
    first = held()
    told(engine, "Once upon a time", max_new_tokens=20)
    assert first and held() == first


def test_a_text_that_ends_leaves_no_step_behind(folder, undivided, profile) -> None:
    plain = on_two(folder, undivided, profile, SPLITS["layers and cuts"])
    options = {"max_new_tokens": 24, "temperature": 1.5, "seed": 4}
    free = plain.generate(IDS, ignore_eos=True, **options)
    eos = next(token for token in free.token_ids if free.token_ids.index(token) > 3)
    patched, calls = plain.tokenizer.eos_ids, []

    class Counted(CalledAgain):
        def replay(self) -> None:
            raise AssertionError("replaced by capture")

        def capture(self, function) -> None:
            function()
            self.replay = lambda: (calls.append(function), function())[1]

    ahead = in_graphs(plain, Counted)
    plain.tokenizer.eos_ids = frozenset({eos})
    try:
        for _ in range(2):  # the second run finds nothing of the first
            expected, found = (engine.generate(IDS, **options) for engine in (plain, ahead))
            assert found.token_ids == expected.token_ids and found.finish_reason == "eos"
            assert found.stats["cold"] == expected.stats["cold"]
    finally:
        plain.tokenizer.eos_ids = patched
    tied, decoded_tokens = plain.config.tied_embeddings, len(found.token_ids) - 1
    graphs = GRAPHS["layers and cuts"] + graphs_of_the_ends("layers and cuts", True, tied)
    assert len(calls) == graphs * 2 * decoded_tokens + graphs - tied  # while recording, all but what comes last


def test_no_graph_is_one_line_and_the_same_text(folder, undivided, profile, caplog) -> None:
    class Refuses(CalledAgain):
        def capture(self, function) -> None:
            super().capture(function)
            raise RuntimeError("operation not permitted when stream is capturing")

    plain = on_two(folder, undivided, profile, SPLITS["layers and cuts"])
    engine = in_graphs(plain, Refuses)
    for _ in range(2):
        assert told(engine, IDS, max_new_tokens=6) == told(plain, IDS, max_new_tokens=6)
    found = [record.message for record in caplog.records if "no CUDA graph" in record.message]
    assert len(found) == 1 and found[0].endswith("decoding op by op")


def test_two_streams_at_once_have_steps_of_their_own(folder, undivided, profile) -> None:
    plain = on_two(folder, undivided, profile, SPLITS["layers and cuts"])
    engine, options = in_graphs(plain), {"max_new_tokens": 8, "ignore_eos": True}
    expected = [plain.generate(prompt, **options).text for prompt in (IDS, [5, 6])]
    streams = [engine.stream(prompt, **options) for prompt in (IDS, [5, 6])]
    first = [next(each) for each in streams]  # both have begun
    assert [begun + "".join(each) for begun, each in zip(first, streams, strict=True)] == expected


def test_what_is_said_without_a_gpu(folder, undivided, profile) -> None:
    engine = on_two(folder, undivided, profile, SPLITS["layers and cuts"])
    assert why_no_step(engine.decoder) == "the model is on cpu" and unfit(engine.decoder) is None
    assert engine._pool is None
