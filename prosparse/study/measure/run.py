"""`measure`: what the neurons of a model do on a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ...engine import Engine
from ...errors import UserError
from ..windows import HELD_OUT
from .cett import measure_cett
from .collect import Predictor
from .engine_subject import EngineSubject
from .live_subject import LiveSubject
from .one_pass import Pass, Sample, Settings
from .report import Report
from .stream import Windows, batch_windows, text_windows
from .subject import Subject
from .sweep import sweep_thresholds

WINDOW = 512
NEAR_ZERO = 0.01  # ProSparse's threshold for its 7B and 13B models
SAMPLE_TOKENS = 4096
Progress = Callable[[str, int, int], None]


def measure(
    model: Any,
    text: str | Path | Iterable[Any] | None = None,
    *,
    tokenizer: Any = None,
    second: str | Path | Iterable[Any] | None = None,
    window: int | None = None,
    batch: int = 8,
    tokens: int | None = None,
    near_zero: float = NEAR_ZERO,
    predictor: Predictor | None = None,
    thresholds: Sequence[float] = (),
    cett: Sequence[float] = (),
    cett_ppl: Sequence[float] = (),
    sample: int = SAMPLE_TOKENS,
    share: tuple[int, int] = (1, 1),
    state: str | Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure activation sparsity and what goes with it, in one pass over a text.

    Args:
        model: an `Engine`, or a transformers model with gated or plain FFNs of any activation.
        text: token batches, [sequences, tokens] each, every row a sequence of its own; or a UTF-8 file, or a folder of
            .txt and .md files. None is the packaged held-out excerpt.
        tokenizer: for a text and a transformers model; an engine has its own.
        second: another text, to see whether the hot set is the same on it.
        window: tokens the model reads from nothing at a time; None is 512 or the context, for token batches the length
            of their rows.
        batch: windows that a transformers model reads at once; 1 to 32.
        tokens: stop after about so many.
        near_zero: |act(gate)| below this counts as near zero.
        predictor: called with (layer, normed input [tokens, hidden]), returns [tokens, neurons] bool; adds predictor
            recall and predicted sparsity.
        thresholds: in units of act(gate); adds perplexity and sparsity with everything below each closed.
        cett: targets of the cumulative error of tail truncation, between 0 and 1; adds the sparsity that each allows.
        cett_ppl: percents by which perplexity may rise; adds the CETT and sparsity at each.
        sample: tokens, spread evenly over the text, that the last three read again and again.
        share: (number, of): measure one part of the text; `merge` adds the parts.
        state: a file to save the pass in now and then; a pass that finds it goes on where it ended. It stays when
            the pass is complete: delete it once the report is safe.
        name: of the model, for the report.
        progress: called with (what, done, total); total is 0 where it is not known.

    Returns:
        a `Report`; `.document` is plain data, `.to_json()`, `.plot()`, `.to_html()` and `.save()` write it.

    Raises:
        UserError: arguments out of range, a text that is empty, too short or cannot be read.
        UnsupportedError: a model without FFNs that are known.
        MachineError: a state that cannot be written.
    """
    _check(batch, tokens, near_zero, thresholds, cett, cett_ppl, sample, share)
    subject = as_subject(model, name)
    several_passes = bool(thresholds or cett or cett_ppl)
    if share != (1, 1) and (several_passes or second is not None):
        raise UserError(
            "measure: a share is for the one pass alone; sweeps and a second text need a run without shares"
        )
    windows = _windows(subject, model, text, tokenizer, window, partial(progress, "reading") if progress else None)
    settings = Settings(windows.length, near_zero, tokens)
    kept = Sample(max(1, sample // windows.length) if several_passes else 0)
    where = None if state is None else Path(state)
    reading = Pass(subject, windows, settings, batch, share, predictor, where, kept)
    counts = reading.run()
    extra: dict[str, Any] = {}
    if thresholds:
        extra["threshold_sweep"] = sweep_thresholds(subject, kept.windows, thresholds, progress)
    if cett or cett_ppl:
        extra["cett"] = measure_cett(subject, kept.windows, cett, cett_ppl, progress)
    report = Report(counts, reading.header(), extra)
    if second is None:
        return report
    seen = partial(progress, "reading the second text") if progress else None
    others = _windows(subject, model, second, tokenizer, windows.length, seen)
    other = Pass(subject, others, settings, batch, share)
    return report.with_second(Report(other.run(), other.header()))


def as_subject(model: Any, name: str | None = None) -> Subject:
    """The subject that an Engine or a transformers model is.

    Raises:
        UserError: it is neither.
        UnsupportedError: its FFNs are of no kind that is known.
    """
    if isinstance(model, Engine):
        return EngineSubject(model, name)
    if isinstance(model, nn.Module):
        return LiveSubject(model, name)
    raise UserError(
        f"measure: expected an Engine (prosparse.load) or a transformers model, got {type(model).__name__}; load a "
        "folder with prosparse.load first"
    )


def _windows(
    subject: Subject,
    model: Any,
    text: str | Path | Iterable[Any] | None,
    tokenizer: Any,
    window: int | None,
    progress: Callable[[int, int], None] | None,
) -> Windows:
    context = subject.facts.context
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or not 2 <= window <= context):
        raise UserError(f"measure: window must be from 2 to the context of {context} tokens, got {window!r}")
    if text is not None and not isinstance(text, str | Path):
        return batch_windows(text, window, context, subject.facts.vocab, progress)
    tokenizer = model.tokenizer if isinstance(model, Engine) else tokenizer
    if tokenizer is None:
        raise UserError("measure: a text needs a tokenizer for this model; pass tokenizer=, or token batches")
    text = HELD_OUT if text is None else text
    return text_windows(text, tokenizer, min(WINDOW, context) if window is None else window, progress)


def _check(
    batch: int,
    tokens: int | None,
    near_zero: float,
    thresholds: Sequence[float],
    cett: Sequence[float],
    cett_ppl: Sequence[float],
    sample: int,
    share: tuple[int, int],
) -> None:
    for what, value in (("batch", batch), ("tokens", tokens), ("sample", sample)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"measure: {what} must be a whole number of at least 1, got {value!r}")
    if not 1 <= share[0] <= share[1]:
        raise UserError(f"measure: share must be (number, of) with number from 1 to of, got {share}")
    numbers = (("near_zero", (near_zero,), math.inf), ("thresholds", thresholds, math.inf))
    limits = (*numbers, ("cett", cett, 1.0), ("cett_ppl", cett_ppl, 1000.0))
    for what, values, limit in limits:
        bad = [value for value in values if not 0 <= value < limit]
        if bad:
            raise UserError(f"measure: {what} must be at least 0 and below {limit:g}, got {bad[0]!r}")
