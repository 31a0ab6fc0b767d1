"""The end of a run: choose the threshold, export the folder, measure it, describe it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from make_excerpts import read_text
from measure_card import PROMPTS, make_card
from tokenizers import Tokenizer

from . import prepare
from .export import choose, round_to_bf16, sweep, write_json, write_model
from .readme import describe
from .run import LOG, Run
from .text import text_windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="nats of loss that the threshold may cost (default: 0.01)"
    )
    parser.add_argument(
        "--sparsity-at-most", type=float, default=1.0, help="mean activation sparsity not to exceed (default: 1)"
    )
    parser.add_argument("--sweep-windows", type=int, default=64, help="of calibration text (default: 64)")
    parser.add_argument("--held-out", type=Path, help="text the card is measured on (default: the run's own)")
    parser.add_argument("--calibration", type=Path, help="text the card's predictor is made on (default: the run's)")
    parser.add_argument("--prompt", action="append", help="to continue in the card; may be repeated")
    parser.add_argument("--note", type=Path, help="Markdown for the README, on the text and its rights")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")


def describe_run(run: Run, tolerance: float) -> dict[str, Any]:
    """How the model was made, for metrics.json and the card."""
    schedule, settings = run.schedule, run.settings
    return {
        **settings.provenance,
        "tokens": run.tokens,
        "steps": run.tokens // run.step_tokens,
        "process_cpu_s": round(run.cpu_s),
        "schedule": schedule.as_dict(),
        "optimizer": {"muon_lr": settings.muon_lr, "adam_lr": settings.adam_lr, "weight_decay": settings.weight_decay},
        "tokens_per_step": run.step_tokens,
        "seed": settings.seed,
        "threshold_tolerance": tolerance,
        "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
    }


def finish(args: argparse.Namespace) -> None:
    """Make the folder `args.output` from the run's checkpoint."""
    if args.output.exists():
        raise SystemExit(f"{args.output}: exists; name a folder that does not")
    run = prepare.resume(args.run, device="cpu")
    if run.schedule.lr_factor(run.tokens) > 0:
        left = run.schedule.total - run.tokens
        raise SystemExit(f"{args.run}: {left} tokens of its schedule are left; `resume` it, or `decay` it and `resume`")
    tokenizer = Tokenizer.from_file(str(args.run / prepare.TOKENIZER))
    calibration = text_windows(
        tokenizer, read_text(args.run / prepare.CALIBRATION), run.settings.shape.context, args.sweep_windows
    )
    round_to_bf16(run.network)
    rows = sweep(run.network, calibration, run.settings.micro_windows)
    threshold = choose(rows, args.tolerance, args.sparsity_at_most)
    write_model(run.network, tokenizer, threshold, args.output)

    made = describe_run(run, args.tolerance)
    log = [json.loads(line) for line in (args.run / LOG).read_text().splitlines()]
    write_json(args.output / "metrics.json", {"made": made, "threshold": threshold, "sweep": rows, "log": log})
    books = json.loads((args.run / prepare.BOOKS).read_text(encoding="utf-8"))
    card = make_card(
        args.output,
        args.held_out or args.run / prepare.HELD_OUT,
        args.calibration or args.run / prepare.CALIBRATION,
        args.prompt or PROMPTS,
    )
    for part in ("sample", "full"):
        for activation in ("relu", "fatrelu"):
            if not math.isfinite(card[part][activation]["nats_per_token"]):
                raise SystemExit(f"{args.output}: its loss is not finite; the run has diverged, lower its rates")
    write_json(args.output / "card.json", {"made": made, "books": books, **card})
    note = args.note.read_text(encoding="utf-8") if args.note else ""
    (args.output / "README.md").write_text(describe(args.output, note), encoding="utf-8")
