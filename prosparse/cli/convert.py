"""prosparse convert: write a checkpoint in safetensors."""

from __future__ import annotations

import argparse
import sys

from ..errors import UserError
from . import options

NAME = "convert"
PACKAGED = ""  # no file has this name
HELP = "write a checkpoint in safetensors, from .bin files or in another weight format"
DESCRIPTION = (
    "Write a model folder in safetensors, quantised if asked to. Reads safetensors or PyTorch .bin files, the latter "
    "without running any code they may carry. With --calibrate, int8 and int4 are rounded for the inputs that matrices "
    "have on a text: that takes longer, and int4 loses about half as much. The new folder appears only when it is "
    "complete; a conversion that was stopped goes on where it was when the same command is given again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder to read")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write; must not exist yet")
    options.add_formats(parser, "default: as stored")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const=PACKAGED,
        metavar="TEXT",
        help="round for what matrices are multiplied with on a UTF-8 file, or a folder of .txt and .md files (default: "
        "the packaged calibration excerpt)",
    )
    parser.add_argument(
        "--calibration-tokens", type=int, metavar="N", help="how many of the text to use, about (default: 16384)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")


def run(args: argparse.Namespace) -> int:
    if args.calibration_tokens is not None and args.calibrate is None:
        raise UserError("convert: --calibration-tokens says how much of a text to use; add --calibrate")
    formats = {"weights": args.weights, "lm_head": args.lm_head}
    if args.calibrate is None:
        from ..weights import convert  # heavy: torch

        bar = options.progress_bar("converting")
        convert(args.model, args.output, **formats, overwrite=args.overwrite, progress=bar)
    else:
        from ..study.calibrate import TOKENS, convert_calibrated  # heavy: torch and transformers

        convert_calibrated(
            args.model,
            args.output,
            **formats,
            text=None if args.calibrate == PACKAGED else args.calibrate,
            tokens=TOKENS if args.calibration_tokens is None else args.calibration_tokens,
            overwrite=args.overwrite,
            progress=options.progress_bar("calibrating and converting"),
        )
    sys.stderr.write(f"prosparse: wrote {args.output}\n")
    return 0
