"""Subject "lookup": what steps of several tokens cost, and texts whose drafts are right as often as is chosen.

The drafts stand in for those of prompt lookup, which depend on the text: each drafted token is the one that will come
with a given probability, else another. How many are tried in a step is decided as always, by what came so far.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from prosparse.config import SamplingParams
from prosparse.config.shapes import shape as shape_named
from prosparse.engine import Engine
from prosparse.engine.load import load
from prosparse.engine.lookup import LENGTHS, Costs, Draft, Lookup
from prosparse.engine.request import Request
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity, bytes_per_token
from prosparse.errors import MachineError
from prosparse.weights.formats import PACKED
from prosparse.weights.synthetic import walk, write_synthetic

from .clock import Timing, interleave
from .decode import fit_layers
from .modes import held_bytes, likeliest
from .probe import Probe, bandwidth
from .progress import Progress, stage
from .row import Row, floor, make_row, measured

PROMPT = (7,)  # one token, so that all but the first of a text are decode steps
STEPS = (1, 2, 3, 4, 5, 6, 8, 16)  # tokens
RIGHT = (0.0, 0.25, 0.5, 0.75, 1.0)
ONE_BY_ONE = "steps of one token over the same weights in the same run"


class KnownText(Lookup):
    """Drafts of a text that is known, of which each token is right with a given probability."""

    def __init__(self, text: Sequence[int], right: float, vocab: int) -> None:
        super().__init__(())
        self._text, self._right, self._vocab = text, right, vocab
        self._random = random.Random(0)

    def draft(self, most: int) -> Draft:
        coming = self._text[len(self._ids) :][:most]
        wrong = [self._random.random() >= self._right for _ in coming]
        tokens = [(token + is_wrong) % self._vocab for token, is_wrong in zip(coming, wrong, strict=True)]
        return Draft(tokens, self._rates[LENGTHS[0]].right, LENGTHS[0]) if tokens else Draft()


def compare_lookup(
    shape: str = "minicpm-s-1b",
    sparsity: float = 0.88,
    weights: str = "bf16",
    tokens: int = 64,
    calls: int = 24,
    rounds: int = 6,
    most: int = 7,
    progress: Progress | None = None,
) -> list[Row]:
    """Time steps by their number of tokens, then whole texts by how often drafts are right.

    Args:
        shape: a name of `prosparse.config.shapes`.
        sparsity: activation sparsity of its neurons.
        weights: format.
        tokens: of a text.
        calls: timed steps of each number of tokens.
        rounds: timed texts of each probability.
        most: tokens drafted in a step at most.
        progress: called with (stage, done, total).

    Returns:
        A row for each number of tokens, whose "quality" says the cost in steps of one token, then one for each
        probability, whose "quality" says what was tried and what came, beside one without drafts.

    Raises:
        UserError: no such shape or format.
        MachineError: too little memory or room on the disk, or drafts that change the text.
    """
    full = shape_named(shape)
    config = fit_layers(full, weights)
    with tempfile.TemporaryDirectory(prefix="prosparse-bench-") as temporary:
        folder = Path(temporary, "model")
        stored = "bf16" if weights in PACKED else weights  # and then rounded while it is loaded
        _, knobs = write_synthetic(shape, config, folder, sparsity, stored, progress=stage(progress, "making weights"))
        engine = load(folder, "exact", weights, "cpu", context=len(PROMPT) + max(tokens, max(STEPS) * (calls + 2)))
        labels: dict[str, Any] = {
            "shape": shape,
            "synthetic": knobs.as_dict(),
            "layers": config.layers,
            "weights": weights,
            "note": f"{config.layers} of {full.layers} layers" if config.layers < full.layers else None,
        }
        return [
            *_steps(engine, calls, stage(progress, "timing steps"), labels),
            *_texts(engine, tokens, rounds, most, stage(progress, "timing texts"), labels),
        ]


def _steps(
    engine: Engine, calls: int, progress: Callable[[int, int], None] | None, labels: dict[str, Any]
) -> list[Row]:
    given = walk(engine.config.vocab, engine.context).view(1, -1)
    sessions = {count: Session(engine.decoder, engine.kv_dtype, 1, engine.context) for count in STEPS}

    def step_of(count: int) -> Callable[[int], object]:
        session = sessions[count]
        list(session.prefill(torch.tensor(PROMPT)))

        def call(number: int) -> list[int]:
            at = len(PROMPT) + number * count
            return likeliest(session.decode(given[:, at : at + count], (0,), (at,)))

        return call

    timed: dict[str, Callable[[int], object]] = {str(count): step_of(count) for count in STEPS}
    timings = interleave(timed | {"probe": Probe()}, calls, progress=progress)
    return [
        _row(
            f"{count} tokens a step",
            timings,
            str(count),
            sessions[count],
            labels,
            base="1",
            context=engine.context,
            quality={"tokens": count, "cost": round(timings[str(count)].p10 / timings["1"].p10, 3)},
            **_floor(sessions[count], count, timings, str(count)),
        )
        for count in STEPS
    ]


def _floor(session: Session, tokens: int, timings: dict[str, Timing], name: str) -> Row:
    must_read = (bytes_per_token(session, session.decoder) or 0) * tokens
    return floor(must_read, held_bytes(session.decoder), timings["probe"], timings[name])


def _texts(
    engine: Engine, tokens: int, rounds: int, most: int, progress: Callable[[int, int], None] | None, labels: Any
) -> list[Row]:
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, prompt_lookup=most)
    latest: dict[str, tuple[Request, Session]] = {}
    costs = Costs(engine.weights)

    def write(name: str, drafts: Lookup | None) -> tuple[int, ...]:
        request = Request(list(PROMPT), params, engine.tokenizer, engine.context, engine.config.vocab)
        request.lookup = drafts
        session = Session(engine.decoder, engine.kv_dtype, 1, engine.context, costs=costs)
        for _ in session.run([request]):
            pass
        latest[name] = request, session
        return request.token_ids

    text = write("none", None)

    def call_of(name: str, right: float | None) -> Callable[[int], object]:
        def call(_: int) -> None:
            drafts = None if right is None else KnownText(text, right, engine.config.vocab)
            if write(name, drafts) != text:
                raise MachineError(
                    f"bench: drafts of which {right or 0:.0%} are right change the text; nothing was timed"
                )

        return call

    names: dict[str, float | None] = {"none": None} | {f"{right:.0%} right": right for right in RIGHT}
    timed = {name: call_of(name, right) for name, right in names.items()}
    timings = interleave(timed | {"probe": Probe()}, rounds, warm_up=1, progress=progress)
    rows = []
    for name in names:
        request, session = latest[name]
        drafts = request.lookup
        rows.append(
            _row(
                f"drafts {name}" if drafts else "no drafts",
                timings,
                name,
                session,
                labels,
                base="none",
                context=len(PROMPT) + tokens,
                tokens_per_s=round(1e6 * tokens / timings[name].median, 2),
                bandwidth_gb_s=round(bandwidth(timings["probe"]) / 1e9, 2),
                quality=drafts and {"drafted": drafts.drafted, "accepted": drafts.accepted, "steps": session.steps},
            )
        )
    return rows


def _row(
    part: str, timings: dict[str, Timing], name: str, session: Session, labels: dict[str, Any], base: str, **keys: Any
) -> Row:
    sparsity = activation_sparsity(session, session.decoder.config.neurons_per_token)
    return make_row(
        subject="lookup",
        part=part,
        mode="exact",
        activation_sparsity=sparsity and sparsity["mean"],
        **measured(timings, name, base, ONE_BY_ONE),
        **labels,
        **keys,
    )
