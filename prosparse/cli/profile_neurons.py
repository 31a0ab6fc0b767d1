"""prosparse profile: how often each neuron is active, for placement."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import UserError
from . import measured, options

NAME = "profile"
HELP = "neuron activation counts of a model on a text, for placement"
DESCRIPTION = (
    "Count in how many tokens of a text each neuron is active, and write the counts, [layers, neurons] int64, as "
    "safetensors. With --from-powerinfer, take over the counts that PowerInfer wrote for the model instead."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measured.add_reading(parser, "calibration excerpt")
    parser.add_argument("-o", "--output", required=True, metavar="P", help="file to write, for example p.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--from-powerinfer", metavar="DIR", help="folder with activation_0.pt, activation_1.pt, ..")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON document")
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    path = Path(args.output)
    if path.is_dir():
        raise UserError(f"profile: {path} is a folder; give a file to write")
    if path.exists() and not args.overwrite:
        raise UserError(f"profile: {path} exists; choose another file, or --overwrite to replace it")
    from ..study import CALIBRATION, measure  # heavy: torch and transformers
    from ..study.measure.run import as_subject
    from ..weights.neuron_profile import read_powerinfer

    if args.from_powerinfer is not None:
        profile = read_powerinfer(args.from_powerinfer, args.tokens or 0)
        facts = as_subject(measured.load_model(args)[0]).facts
        profile = profile.of_model(facts.fingerprint, facts.content, facts.layers, facts.neurons)
    else:
        model, tokenizer, name = measured.load_model(args)
        given = options.given(args, ("window", "batch", "tokens"))
        text = CALIBRATION if args.text is None else args.text
        found = measure(model, text, tokenizer=tokenizer, name=name, progress=measured.bars(), **given)
        profile = found.profile()
    profile.save(path)
    layers, neurons = profile.counts.shape
    sys.stderr.write(f"prosparse: wrote {path}\n")
    if args.json:
        facts_of = {key: getattr(profile, key) for key in ("model", "content", "tokens", "text")}
        sys.stdout.write(json.dumps({"layers": layers, "neurons": neurons, **facts_of}, indent=1) + "\n")
    else:
        tokens = f"{profile.tokens} tokens" if profile.tokens else "an unknown number of tokens"
        sys.stdout.write(f"{layers} layers of {neurons} neurons, counted over {tokens} of {profile.text}\n")
    return 0
