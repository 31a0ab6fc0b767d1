"""prosparse bench: how fast, against what."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import options

NAME = "bench"
HELP = "time decode, dense against exact, other engines, prompts and single ops"
DESCRIPTION = (
    "Time decode in several modes over the same weights, in turns, beside the memory bandwidth of this machine. Every "
    "mode must give the same result first. Without a model or a shape it times the packaged model; with --shape it "
    "times synthetic weights of a real model's shape. `python -m prosparse.bench` runs the cases of the published rows."
)
SUBJECTS = ("decode", "prefill", "ffn", "adaptive", "ops", "quality")
SPARSITY = 0.88  # MiniCPM-S-1B's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    what = parser.add_argument_group("what is timed")
    what.add_argument("--shape", metavar="NAME", help="synthetic weights of this shape, for example minicpm-s-1b")
    what.add_argument("--sparsity", type=float, metavar="S", help=f"its activation sparsity (default: {SPARSITY})")
    what.add_argument(
        "--subject",
        choices=SUBJECTS,
        default="decode",
        help="decode: tokens; prefill: prompts against PyTorch's GEMMs; ffn: one FFN from 0 to 98 %% zeros; "
        "adaptive: that with the kernel that an engine chooses; ops: every op alone; quality: formats against fp32, on "
        "text (default: decode)",
    )
    what.add_argument("--modes", default="dense,exact", metavar="LIST", help="of decode (default: dense,exact)")
    what.add_argument(
        "--weights",
        metavar="LIST",
        help="fp32, fp16, bf16, int8, int4, comma-separated (default: as stored; bf16 with --shape)",
    )
    what.add_argument("--batch", default="1", metavar="LIST", help="sequences that decode together (default: 1)")
    what.add_argument(
        "--against",
        metavar="LIST",
        help="other engines in the same run, in turns of eight tokens: transformers-eager, transformers-compile, "
        "llama-cpp and llama-cpp-fp16 (where llama-cpp-python is installed)",
    )
    what.add_argument("--fatrelu-threshold", type=float, metavar="T", help="run the gate with FATReLU at T; 0 is ReLU")
    long = parser.add_argument_group("how long")
    long.add_argument(
        "--pp", default="16", metavar="LIST", help="prompt tokens: before timing, or of each timed prompt (default: 16)"
    )
    long.add_argument("--tg", type=int, default=64, metavar="N", help="decode tokens timed per mode (default: 64)")
    long.add_argument("--repeat", type=int, default=1, metavar="R", help="how many times those (default: 1)")
    long.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per usable core)")
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    out.add_argument("-o", "--output", type=Path, metavar="FILE", help="append rows to FILE, one JSON object a line")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw what the rows show, .png or .svg")


def run(args: argparse.Namespace) -> int:
    _check(args)

    from rich.console import Console  # heavy, like everything below, for --help

    from ..bench.files import append
    from ..bench.plots import draw_file
    from ..bench.table import render
    from ..engine.load import set_threads

    set_threads(args.threads)
    rows = _measure(args)
    if args.output is not None:
        append(args.output, rows)
    if args.plot is not None:
        draw_file(rows, args.plot)
    if args.json:
        sys.stdout.write(json.dumps({"rows": rows}, indent=1) + "\n")
    else:
        Console().print(render(rows))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.model is not None and args.shape is not None:
        raise UserError("bench: a model and --shape were given; pass one")
    if args.sparsity is not None and args.shape is None:
        raise UserError("bench: --sparsity belongs to --shape; a model's own activation sparsity is measured")
    if args.fatrelu_threshold is not None and args.shape is not None:
        raise UserError("bench: --fatrelu-threshold belongs to a model; a shape has its own")
    if args.subject in ("prefill", "ffn", "adaptive", "ops") and args.shape is None:
        raise UserError(f"bench: --subject {args.subject} times synthetic weights; pass --shape minicpm-s-1b")
    if args.subject == "quality" and args.shape is not None:
        raise UserError("bench: --subject quality needs a model that has learned something; leave --shape out")
    if args.subject != "decode" and (args.against or args.batch != "1"):
        raise UserError("bench: --against and --batch belong to --subject decode")


def _measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of every format asked for."""
    from ..bench.adaptive import compare_adaptive
    from ..bench.decode import compare, compare_model
    from ..bench.ffn import compare_ffn
    from ..bench.modes import Run
    from ..bench.ops import compare_ops
    from ..bench.prefill import compare_prefill
    from ..bench.progress import progress_line
    from ..bench.quality import compare_quality

    sparsity = SPARSITY if args.sparsity is None else args.sparsity
    modes, prompts, batches = args.modes.split(","), _numbers("--pp", args.pp), _numbers("--batch", args.batch)
    if args.subject == "decode" and len(prompts) > 1:
        raise UserError(f"bench: --pp takes one number with --subject decode, got {args.pp}")
    formats = (args.weights or ("bf16" if args.shape or args.subject == "quality" else "auto")).split(",")
    against = tuple(args.against.split(",")) if args.against else ()
    length = Run(prompts[0], args.tg, args.repeat, batch=batches[0], against=against)
    measure: dict[str, Callable[[str, Any], list[dict[str, Any]]]] = {
        "prefill": lambda fmt, line: compare_prefill(args.shape, prompts, fmt, progress=line),
        "ffn": lambda fmt, line: compare_ffn(args.shape, weights=fmt, progress=line),
        "adaptive": lambda fmt, line: compare_adaptive(args.shape, fmt, progress=line),
        "ops": lambda fmt, line: compare_ops(args.shape, fmt, sparsity, progress=line),
        "quality": lambda fmt, line: compare_quality(args.model, [(fmt, "auto")], modes, progress=line),
    }
    if args.shape is not None:
        measure["decode"] = lambda fmt, line: compare(args.shape, sparsity, modes, fmt, length, line, batches)
    else:
        threshold = args.fatrelu_threshold
        measure["decode"] = lambda fmt, line: compare_model(args.model, modes, fmt, length, line, threshold, batches)
    return [row for fmt in formats for row in measure[args.subject](fmt, progress_line(f"bench {fmt}"))]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"bench: {option} takes whole numbers with commas between them, got {text!r}") from None
