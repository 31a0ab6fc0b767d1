"""prosparse bench: decode speed, dense against exact."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import UserError
from . import options

NAME = "bench"
HELP = "time decode, dense against exact"
DESCRIPTION = (
    "Time decode in several modes over the same weights, in turns, beside the memory bandwidth of this machine. Every "
    "mode must give the same result first. Without a model or a shape it times the embedded model; with --shape it "
    "times synthetic weights of a real model's shape."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--shape", metavar="NAME", help="synthetic weights of this shape, for example minicpm-s-1b")
    parser.add_argument("--sparsity", type=float, metavar="S", help="its activation sparsity (default: 0.88)")
    parser.add_argument("--modes", default="dense,exact", help="comma-separated (default: dense,exact)")
    parser.add_argument(
        "--weights",
        metavar="LIST",
        help="fp32, fp16, bf16, int8, int4, comma-separated (default: as stored; bf16 with --shape)",
    )
    parser.add_argument("--pp", type=int, default=16, metavar="N", help="prompt tokens before timing (default: 16)")
    parser.add_argument("--tg", type=int, default=64, metavar="N", help="decode tokens timed per mode (default: 64)")
    parser.add_argument("--repeat", type=int, default=1, metavar="R", help="how many times those (default: 1)")
    parser.add_argument(
        "--fatrelu-threshold", type=float, metavar="T", help="run the gate with FATReLU at T; 0 is ReLU"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="append rows to FILE, one JSON object a line")


def run(args: argparse.Namespace) -> int:
    if args.model is not None and args.shape is not None:
        raise UserError("bench: a model and --shape were given; pass one")
    if args.sparsity is not None and args.shape is None:
        raise UserError("bench: --sparsity belongs to --shape; a model's own activation sparsity is measured")
    if args.fatrelu_threshold is not None and args.shape is not None:
        raise UserError("bench: --fatrelu-threshold belongs to a model; a shape has its own")

    from rich.console import Console  # heavy, like everything below, for --help

    from ..bench.decode import compare, compare_model
    from ..bench.modes import Run
    from ..bench.run import append, progress_line
    from ..bench.table import render
    from ..engine.load import set_threads

    if args.threads is not None:
        set_threads(args.threads)
    length = Run(args.pp, args.tg, args.repeat)
    modes = args.modes.split(",")
    rows = []
    for weights in (args.weights or ("bf16" if args.shape else "auto")).split(","):
        progress = progress_line(f"bench {weights}")
        if args.shape is not None:
            sparsity = 0.88 if args.sparsity is None else args.sparsity
            rows += compare(args.shape, sparsity, modes, weights, length, progress)
        else:
            rows += compare_model(args.model, modes, weights, length, progress, args.fatrelu_threshold)
    if args.output is not None:
        append(args.output, rows)
    if args.json:
        sys.stdout.write(json.dumps({"rows": rows}, indent=1) + "\n")
    else:
        Console().print(render(rows))
    return 0
