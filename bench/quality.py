"""Subject "quality": how far each weight format and mode is from dense fp32 on text. Nothing here is timed.

`docs/formats.md` defines perplexity ratio, KL divergence and top-1 agreement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from prosparse.engine.load import EMBEDDED_MODEL, load
from prosparse.study import Interval, perplexity

from .progress import Progress, stage
from .row import Row, make_row

FORMATS = (("bf16", "auto"), ("int8", "auto"), ("int4", "int8"), ("int4", "auto"))  # weights, lm_head


def compare_quality(
    model: str | Path | None = None,
    formats: Sequence[tuple[str, str]] = FORMATS,
    modes: Sequence[str] = ("dense", "exact"),
    predictions: int = 10_000,
    progress: Progress | None = None,
) -> list[Row]:
    """Compare formats and modes with the dense fp32 engine of the same model on the packaged held-out excerpt.

    Args:
        model: see `prosparse.load`; None is the packaged model.
        formats: pairs of weights and lm_head.
        modes: of `prosparse.plan.MODES`.
        predictions: about how many tokens to predict.
        progress: called with (stage, done, total).

    Returns:
        One row per format and mode; "part" names a head of another format, "quality" holds value and 95 % interval.

    Raises:
        UserError: see `prosparse.load`.
        MachineError: not enough memory, or logits that are not finite.
    """
    baseline = load(model, "dense", "fp32", "cpu", progress=stage(progress, "loading"))
    name = EMBEDDED_MODEL.name if model is None else Path(model).name or Path(model).resolve().name
    rows = []
    for weights, lm_head in formats:
        for mode in modes:
            engine = load(model, mode, weights, "cpu", lm_head=lm_head)
            update: Callable[[int, int], None] | None = stage(progress, f"{weights} {mode}")
            found = perplexity(engine, baseline, predictions=predictions, progress=update)
            sparsity = found.activation_sparsity
            quality = {
                "predictions": found.predictions,
                "perplexity": round(found.perplexity, 5),
                "perplexity_ratio": _rounded(found.perplexity_ratio),
                "kl_divergence": _rounded(found.kl_divergence),
                "top1_agreement": _rounded(found.top1_agreement),
            }
            rows.append(
                make_row(
                    subject="quality",
                    part=None if found.lm_head == found.weights else f"lm_head {found.lm_head}",
                    model=name,
                    layers=engine.config.layers,
                    mode=mode,
                    weights=found.weights,
                    context=found.window,
                    activation_sparsity=sparsity and sparsity["mean"],
                    baseline="dense fp32 on the same windows",
                    quality=quality,
                )
            )
    return rows


def _rounded(interval: Interval) -> list[float | None]:
    """[value, low, high] with six significant digits."""
    values = dataclasses.astuple(interval)
    return [None if value is None else float(f"{value:.6g}") for value in values]
