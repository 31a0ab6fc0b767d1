"""Subject "predictors", the packaged model: every kind that is made without training and the predictor it ships with.

Its zeros are those of a trained model on text, so recall and divergence mean something here, on the held-out excerpt.
It is small enough for a cache, so these rows have no floor; how fast predicting is where memory decides is what the
synthetic shapes say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from prosparse.engine import Engine, load
from prosparse.engine.load import EMBEDDED_MODEL, PREDICTOR_FILE
from prosparse.errors import UserError
from prosparse.study.predictors import build
from prosparse.study.predictors.apply import decoder_with
from prosparse.study.predictors.calibration import TOKENS
from prosparse.study.predictors.judge import judge
from prosparse.study.predictors.quality import Quality
from prosparse.study.windows import cut, read_text
from prosparse.weights.predictor import KINDS, Predictor

from .clock import Timing, interleave, speedup
from .modes import Run, decode_row, likeliest, prefilled
from .probe import Probe
from .progress import Progress, stage
from .row import Row

SHIPPED = "shipped"
RUN = Run(tg=128, repeat=2)
PREDICTIONS = 4096  # of the held-out excerpt, for the quality


def compare_embedded(
    kinds: Sequence[str] = (*KINDS, SHIPPED),
    weights: str = "bf16",
    run: Run = RUN,
    predictions: int = PREDICTIONS,
    calibration: int = TOKENS,
    progress: Progress | None = None,
) -> list[Row]:
    """Build, judge and time predictors of the packaged model.

    Args:
        kinds: of `prosparse.weights.predictor.KINDS`, or "shipped".
        weights: format of the model.
        run: how long to time; the tokens are the held-out excerpt's.
        predictions: about how many are judged.
        calibration: tokens that predictors are built on.
        progress: called with (stage, done, total).

    Returns:
        Rows of dense and exact, then one per kind: "part" names it, "quality" is what `predictor eval` finds.

    Raises:
        UserError: no such kind.
    """
    if unknown := set(kinds) - {*KINDS, SHIPPED}:
        raise UserError(f"bench: kind is {min(unknown)!r}; supported are {', '.join((*KINDS, SHIPPED))}")
    engine = load(None, "exact", weights, "cpu")
    made: dict[str, Predictor] = {}
    for number, kind in enumerate(kinds):
        if progress is not None:
            progress("building", number, len(kinds))
        if kind == SHIPPED:
            made[kind] = Predictor.load(EMBEDDED_MODEL / PREDICTOR_FILE)
        else:
            made[kind] = build(engine, kind, tokens=calibration)
    windows = cut(read_text(None), engine.tokenizer, 512, predictions)
    found = dict(zip(made, judge(engine, made, windows, stage(progress, "judging")), strict=True))
    rows, timings = _timed(engine, made, windows.inputs[:1, : run.pp + run.tg], run, progress)
    for row in rows[2:]:
        row["quality"] = _plain(found[row["part"]], timings)
        row["predicted_sparsity"] = found[row["part"]].predicted_sparsity
    return rows


def _timed(
    engine: Engine, made: dict[str, Predictor], tokens: Tensor, run: Run, progress: Progress | None
) -> tuple[list[Row], dict[str, Timing]]:
    which: dict[str, Predictor | str] = {"dense": "dense", "exact": "exact", **made}
    decoders = {name: decoder_with(engine, how) for name, how in which.items()}
    sessions = {name: prefilled(each, tokens[:, : run.pp], tokens.shape[1]) for name, each in decoders.items()}

    def step_of(name: str) -> Callable[[int], object]:
        def call(number: int) -> list[int]:
            at = run.pp + number % run.tg
            return likeliest(sessions[name].decode(tokens[:, at : at + 1], (0,), (at,)))

        return call

    timings = interleave(
        {**{name: step_of(name) for name in decoders}, "probe": Probe()},
        run.tg * run.repeat,
        budget_s=run.budget_s,
        progress=stage(progress, "timing"),
    )
    labels: dict[str, object] = {"subject": "predictors", "model": EMBEDDED_MODEL.name}
    rows = []
    for name in decoders:
        row = decode_row(name, decoders[name], sessions[name], timings, run, {})
        rows.append(row | labels | ({} if name in ("dense", "exact") else {"mode": "predicted", "part": name}))
    return rows, timings


def _plain(found: Quality, timings: dict[str, Timing]) -> dict[str, object]:
    ratio = speedup(timings["exact"], timings[found.name])
    return {
        "predictions": found.predictions,
        "recall": found.recall and round(found.recall, 4),
        "kl_divergence": float(f"{found.kl_divergence.value:.4g}"),
        "top1_agreement": round(found.top1_agreement.value, 4),
        "exact_ratio": round(ratio.value, 3),
        "exact_ratio_95": [round(ratio.low, 3), round(ratio.high, 3)],
    }
