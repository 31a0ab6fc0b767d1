"""prosparse measure: what the neurons of a model do on a text."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import measured, options

if TYPE_CHECKING:
    from ..study import Report

NAME = "measure"
HELP = "activation sparsity per layer, token and neuron: JSON, plots, one HTML page"
DESCRIPTION = (
    "Read a text and count which neurons are active: activation sparsity per layer and position, hot and cold neurons, "
    "overlap of neighbouring tokens, unions over several tokens. Works on any model that has gated or plain FFNs. With "
    "-o a killed run goes on when it is started again; shares of a text can be measured apart and merged exactly."
)
STATE = "state.safetensors"
PLOTS_MISSING = "prosparse: no plots: matplotlib is not installed (`pip install 'prosparse[plots]'`)\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measured.add_reading(parser, "held-out excerpt")
    parser.add_argument("-o", "--output", metavar="DIR", help="write measure.json, measure.html, counts and plots here")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier measurement in DIR")
    parser.add_argument("--no-plots", action="store_true", help="leave the PNG and SVG files out")
    parser.add_argument("--json", action="store_true", help="print the JSON document to stdout")
    parser.add_argument("--near-zero", type=float, metavar="E", help="|act(gate)| below E is near zero (default: 0.01)")
    parser.add_argument("--second-text", metavar="F", help="another text: is the hot set the same on it?")
    shares = parser.add_argument_group("shares")
    shares.add_argument("--share", metavar="K/N", help="measure the K-th of N shares of the text")
    shares.add_argument("--merge", nargs="+", metavar="DIR", help="merge the shares in these folders; loads no model")
    passes = parser.add_argument_group("further passes, over a sample of the text")
    passes.add_argument("--thresholds", metavar="T,T", help="perplexity with act(gate) below each threshold closed")
    passes.add_argument("--cett", metavar="C,C", help="sparsity at each cumulative error of tail truncation, 0 to 1")
    passes.add_argument("--cett-ppl", metavar="P,P", help="sparsity at which perplexity is P percent higher")
    passes.add_argument("--sample", type=int, metavar="N", help="tokens of the sample (default: 4096)")
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    folder = None if args.output is None else Path(args.output)
    if folder is not None:
        _check_output(folder, args.overwrite)
    report = _merged(args.merge) if args.merge else _measured(args, folder)
    if folder is not None:
        plots = not args.no_plots and importlib.util.find_spec("matplotlib") is not None
        if not plots and not args.no_plots:
            sys.stderr.write(PLOTS_MISSING)
        report.save(folder, plots)
        (folder / STATE).unlink(missing_ok=True)
        sys.stderr.write(f"prosparse: wrote {folder}; open {folder / 'measure.html'}\n")
    sys.stdout.write(report.to_json() if args.json else summary(report.document))
    return 0


def summary(document: dict[str, Any]) -> str:
    """The report for a person."""
    text, mean, model = document["text"], document["mean"], document["model"]
    number, of = document["settings"]["share"]
    part = "" if of == 1 else f", share {number} of {of}"
    rows = {
        "measured": f"{text['tokens']} tokens of {text['name']} in windows of {document['settings']['window']}{part}",
        "model": f"{model['name']}: {model['layers']} layers of {model['neurons']} neurons, {model['activation']}",
    }
    if mean is not None:
        unions = dict(zip(document["settings"]["union_sizes"], mean["union_sequence"], strict=True))
        rows |= {
            "activation sparsity": f"{mean['activation_sparsity']:.2%} (of the gate {mean['gate_sparsity']:.2%})",
            "near zero": f"{mean['near_zero_share']:.2%} of |act(gate)| below {document['settings']['near_zero']:g}",
            "hot neurons": f"{_share(mean['hot_share'])} of neurons make 80 % of activations",
            "never active": f"{sum(layer['dead'] for layer in document['layers'])} neurons",
            "overlap": f"{_share(mean['overlap'])} of active neurons stay active in the next token",
            "union": ", ".join(f"{_share(share)} for {size} tokens" for size, share in unions.items()),
        }
    if document["stability"] is not None:
        same = document["stability"]["mean"]
        rows["second text"] = f"{_share(same['covered'])} of its activations are of the first one's hot neurons"
    for row in (document["threshold_sweep"] or {}).get("rows", []):
        rows[f"below {row['threshold']:g}"] = _cost(row)
    for row in (document["cett"] or {}).get("targets", []):
        rows[f"CETT {row['cett']:g}"] = _cost(row)
    for row in (document["cett"] or {}).get("ppl", []):
        rows[f"CETT-PPL-{row['percent']:g}%"] = f"{_cost(row)}, CETT {row['cett']:.3g}"
    width = max(map(len, rows))
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows.items())


def _cost(row: dict[str, Any]) -> str:
    return f"activation sparsity {row['activation_sparsity']:.2%}, perplexity {row['perplexity_ratio']:.4f} times"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _measured(args: argparse.Namespace, folder: Path | None) -> Report:
    thresholds, cett, cett_ppl = (_numbers(args, name) for name in ("thresholds", "cett", "cett_ppl"))
    share = _parse_share(args.share)
    from ..study import measure  # heavy: torch and transformers

    model, tokenizer, name = measured.load_model(args)
    given = options.given(args, ("window", "batch", "tokens", "near_zero", "sample"))
    return measure(
        model,
        args.text,
        tokenizer=tokenizer,
        second=args.second_text,
        thresholds=thresholds,
        cett=cett,
        cett_ppl=cett_ppl,
        share=share,
        state=None if folder is None else folder / STATE,
        name=name,
        progress=measured.bars(),
        **given,
    )


def _merged(folders: list[str]) -> Report:
    from ..study import merge  # heavy: torch

    return merge(folders)


def _numbers(args: argparse.Namespace, name: str) -> tuple[float, ...]:
    text = getattr(args, name)
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        option = name.replace("_", "-")
        raise UserError(f"measure: --{option} takes numbers with commas between them, got {text!r}") from None


def _parse_share(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"measure: --share must be K/N with K from 1 to N, for example 2/8, got {text!r}")
    return int(number), int(of)


def _check_output(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"measure: {folder} is a file; give a folder to write to")
    if (folder / "measure.json").exists() and not overwrite:
        raise UserError(f"measure: {folder} holds a measurement; choose another folder, or --overwrite to replace it")
