"""prosparse synth: write a model of a real shape with chosen activation sparsity."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from . import options

if TYPE_CHECKING:
    from ..weights.synthetic import Knobs

NAME = "synth"
HELP = "write a model of a real shape with random weights and chosen activation sparsity"
DESCRIPTION = (
    "Write a folder in Hugging Face's format with the shape of a real model and random weights, whose neurons are as "
    "active, as skewed, as predictable and as steady as asked. Then the folder is read back, given other tokens, and "
    "what it does is printed beside what was asked. What it writes means nothing: it is for measuring and testing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", required=True, metavar="NAME", help="for example minicpm-s-1b")
    parser.add_argument("--sparsity", type=float, required=True, metavar="S", help="activation sparsity, 0 to 1")
    parser.add_argument("--skew", type=float, metavar="H", help="share of activations in the hottest fifth of neurons")
    parser.add_argument("--predictability", type=float, metavar="P", help="share of the gate's energy of low rank")
    parser.add_argument("--overlap", type=float, metavar="O", help="share of active neurons that stay for a next token")
    parser.add_argument("--weights", default="bf16", metavar="FORMAT", help="fp32, fp16 or bf16 (default: bf16)")
    parser.add_argument("--layers", type=int, metavar="N", help="only so many layers (default: all of the shape)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other numbers (default: 0)")
    parser.add_argument(
        "--device", default="cpu", help="where to make and check them: cpu, cuda or auto (default: cpu)"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it is a model")
    parser.add_argument("--no-check", action="store_true", help="do not read the folder back to measure it")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")


def run(args: argparse.Namespace) -> int:
    from ..config.shapes import shape  # heavy, like everything below, for --help
    from ..machine import resolve_device
    from ..weights.synthetic import Knobs, write_synthetic

    config = shape(args.shape)
    if args.layers is not None:
        if not 1 <= args.layers <= config.layers:
            raise UserError(f"synth: {args.shape} has {config.layers} layers; --layers was {args.layers}")
        config = dataclasses.replace(config, layers=args.layers)
    asked = Knobs(args.sparsity, args.skew, args.predictability, args.overlap)
    bar, device = options.progress_bar("writing"), resolve_device(args.device)
    config, knobs = write_synthetic(
        args.shape, config, args.output, asked, args.weights, args.seed, args.overwrite, bar, device
    )
    cut = f", {config.layers} of {shape(args.shape).layers} layers" if args.layers is not None else ""
    sys.stderr.write(f"prosparse: wrote {args.output} ({args.shape}{cut}, {args.weights}, synthetic weights)\n")
    measured = None if args.no_check else _measure(args.output, device.type, knobs, args.seed)
    if args.json:
        document = {"shape": args.shape, "layers": config.layers, "asked": knobs.as_dict(), "measured": measured}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    elif measured is not None:
        _print(knobs.as_dict(), measured)
    return 0


def _measure(folder: Path, device: str, knobs: Knobs, seed: int) -> dict[str, float | None]:
    from ..engine import load
    from ..study.knobs import measure_knobs
    from ..weights.synthetic import settle

    engine = load(folder, mode="dense", device=device, progress=options.progress_bar("reading back"))
    return measure_knobs(engine, settle(engine.config, knobs), seed)


def _print(asked: dict[str, float], measured: dict[str, float | None]) -> None:
    """Asked beside measured, in points of a hundred."""
    sys.stdout.write(f"{'on other tokens':22}{'asked':>8}{'measured':>10}\n")
    for name, value in asked.items():
        found = measured[name]
        shown = "-" if found is None else f"{found:.1%}"
        sys.stdout.write(f"{name.replace('_', ' '):22}{value:>8.1%}{shown:>10}\n")
