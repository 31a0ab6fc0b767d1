"""prosparse perplexity: how well a mode and a weight format predict a text, beside dense fp32."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from . import options

if TYPE_CHECKING:
    from ..study import Interval, Perplexity

NAME = "perplexity"
HELP = "judge a mode and a weight format on a text, against dense fp32"
DESCRIPTION = (
    "Perplexity of a model on a text in some mode and weight format, and how far its predictions are from those of the "
    "dense model in fp32 on the same windows: KL divergence, top-1 agreement, ratio of perplexities, each with a "
    "bootstrap 95 % interval. The mode under test predicts with decode steps, since prefill is dense in every mode. "
    "Both models are in memory at once."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text (default: the packaged held-out excerpt)")
    parser.add_argument(
        "--baseline", metavar="MODEL", help="what a converted MODEL was made from, for the comparison (default: MODEL)"
    )
    parser.add_argument("--window", type=int, metavar="N", help="tokens per window (default: 512, or the context)")
    parser.add_argument(
        "--predictions", type=int, default=10_000, metavar="N", help="about how many, spread evenly (default: 10000)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import load  # heavy: torch and transformers
    from ..study import perplexity

    loading = options.given(args, options.LOADING)
    engine = load(args.model, progress=options.progress_bar("loading"), **loading)
    baseline = engine  # in fp32 any mode will do: prefill is dense
    if args.baseline is not None or (engine.weights, engine.lm_head) != ("fp32", "fp32"):
        dense = {**loading, "plan": None, "mode": "dense", "weights": "fp32", "lm_head": "auto"}
        baseline = load(args.baseline or args.model, progress=options.progress_bar("loading the baseline"), **dense)
    found = perplexity(
        engine,
        baseline,
        args.text,
        window=args.window,
        predictions=args.predictions,
        progress=options.progress_bar("predicting", " tokens"),
    )
    sys.stdout.write(json.dumps(found.to_dict(), indent=1) + "\n" if args.json else summary(found))
    return 0


def summary(found: Perplexity) -> str:
    """The report for a person."""
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits per byte"
    steps = "one token per step" if found.tokens_per_step == 1 else f"{found.tokens_per_step} tokens per step"
    formats = found.weights if found.lm_head == found.weights else f"{found.weights} (lm_head {found.lm_head})"
    rows = {
        "measured": f"{found.predictions} predictions in {found.windows} windows of {found.window} tokens",
        f"{found.mode} {formats}": f"perplexity {found.perplexity:.4f} ({found.loss:.4f} nats per token{bits})",
        "dense fp32": f"perplexity {found.baseline_perplexity:.4f} ({found.baseline_loss:.4f} nats per token)",
        "perplexity ratio": _interval(found.perplexity_ratio, ".6f"),
        "KL divergence": f"{_interval(found.kl_divergence, '.3g')} nats per token",
        "top-1 agreement": _interval(found.top1_agreement, ".2%"),
    }
    if found.activation_sparsity:
        rows["activation sparsity"] = f"{found.activation_sparsity['mean']:.2%} of neurons at exactly zero"
    rows["computed by"] = f"{found.kernels}; {found.mode} with decode steps, {steps}; dense fp32 with prefill"
    width = max(map(len, rows))
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows.items())


def _interval(interval: Interval, form: str) -> str:
    value = format(interval.value, form)
    if interval.low is None or interval.high is None:
        return f"{value} (too little text for an interval)"
    return f"{value} (95 %: {interval.low:{form}} to {interval.high:{form}})"
