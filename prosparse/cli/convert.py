"""prosparse convert: write a checkpoint in safetensors."""

from __future__ import annotations

import argparse
import sys

from . import options

NAME = "convert"
HELP = "write a checkpoint in safetensors, from .bin files or in another weight format"
DESCRIPTION = (
    "Write a model folder in safetensors, quantised if asked to. Reads safetensors or PyTorch .bin files, the latter "
    "without running any code they may carry. The new folder appears only when it is complete; a conversion that was "
    "stopped goes on where it was when the same command is given again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder to read")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write; must not exist yet")
    options.add_formats(parser, "default: as stored")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")


def run(args: argparse.Namespace) -> int:
    from ..weights import convert  # heavy: torch

    bar = options.progress_bar("converting")
    convert(args.model, args.output, args.weights, args.overwrite, bar, args.lm_head)
    sys.stderr.write(f"prosparse: wrote {args.output}\n")
    return 0
