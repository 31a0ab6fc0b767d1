"""prosparse predictor: make, judge and exchange predictors of active neurons."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import measured, options, predictor_report

if TYPE_CHECKING:
    from ..engine import Engine
    from ..weights.predictor import Predictor

NAME = "predictor"
HELP = "make, judge and exchange predictors of active neurons"
DESCRIPTION = (
    "A predictor guesses which neurons will be active before their gate is read. Mode predicted then reads fewer bytes "
    "than exact, and misses some neurons; `eval` says what that costs. docs/predictors.md has it all."
)
KINDS = {"low-rank": "low_rank", "low-bit-gate": "low_bit_gate", "sign-bits": "sign_bits", "auto": "auto"}
ACTIONS = {
    "build": "make a predictor without training, in seconds to minutes",
    "train": "train low-rank predictors on recorded activations",
    "eval": "what predictors find, save and cost, on held-out text",
    "import": "take over a folder of PowerInfer's predictors (model_0.pt, ..)",
    "export": "write a predictor as PowerInfer reads it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    made = {}
    for name, text in ACTIONS.items():
        own = made[name] = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        own.add_argument("--debug", action="store_true", help="show the traceback of an error, and debug log lines")
        own.set_defaults(parser=own)
    made["import"].add_argument("path", help="folder of model_{i}.pt, or PowerInfer's .gguf file")
    made["export"].add_argument("path", help="predictor to export")
    for own in made.values():
        options.add_model(own)
    for name in ("build", "train", "import", "export"):
        what, kind = ("DIR", "folder") if name == "export" else ("FILE", "file")
        made[name].add_argument("-o", "--output", required=True, metavar=what, help=f"{kind} to write")
        made[name].add_argument("--overwrite", action="store_true", help="replace it if it exists")
        made[name].add_argument("--json", action="store_true", help="print what was made as one JSON document")
    for name in ("build", "train", "import", "eval"):
        made[name].add_argument(
            "--calibration-text" if name == "eval" else "--text", dest="text", metavar="FILE",
            help="UTF-8 text to calibrate on (default: the packaged calibration excerpt)",
        )  # fmt: skip
        made[name].add_argument("--tokens", type=int, metavar="N", help="tokens of that text, about (default: 20480)")
    for name in ("build", "train"):
        _add_making(made[name])
    _add_build(made["build"])
    _add_train(made["train"])
    _add_eval(made["eval"])
    _add_import(made["import"])
    for own in made.values():
        group = own.add_argument_group("loading")
        group.add_argument(
            "--weights",
            default="auto",
            metavar="FORMAT",
            help="of the model (default: as stored; fp32 is held as bf16)",
        )
        options.add_running(group)


def _add_making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", default="auto", metavar="R", help="of low-rank (default: auto, the fewest bytes)")
    parser.add_argument(
        "--target-recall", type=float, metavar="P", help="share of active neurons to find (default: 0.99; int4 0.999)"
    )
    parser.add_argument(
        "--within", type=float, metavar="P", help="layers that predict more than P beyond the active ones stay exact"
    )
    parser.add_argument(
        "--store", default="auto", metavar="FORMAT", help="of low-rank's matrices (default: auto, int8 and int4)"
    )


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", default="low-rank", choices=list(KINDS), help="default: low-rank; auto: per layer")
    parser.add_argument("--target-kl", type=float, metavar="D", help="instead of a recall: nats per token from exact")
    parser.add_argument(
        "--machine",
        metavar="M",
        help="choose what layers run by the seconds of this machine (this), a preset or a description, not by bytes",
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hidden-act", choices=["relu", "none"], help="between the matrices (default: none)")
    parser.add_argument(
        "--powerinfer",
        action="store_true",
        help="as PowerInfer reads them: in every layer, without offsets; for `export`",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="at most (default: 20)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the order of tokens (default: 0)")
    parser.add_argument("--disk", metavar="SIZE", help="for recordings, for example 20GiB (default: 8GiB)")
    parser.add_argument("--work", metavar="DIR", help="recordings and finished layers (default: FILE.work)")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictor", nargs="+", metavar="FILE", help="judge these (default: every kind that needs no training)"
    )
    parser.add_argument("--recording", metavar="FILE", help="judge yardsticks on [tokens, neurons] in .npy; no model")
    parser.add_argument("--held-out", metavar="FILE", help="UTF-8 text to judge on (default: the packaged excerpt)")
    parser.add_argument("--predictions", type=int, metavar="N", help="about how many (default: 10000)")
    parser.add_argument("--target-kl", type=float, metavar="D", help="of the chosen point (default: 0.005)")
    parser.add_argument("--time", action="store_true", help="measure tokens/s of each predictor, exact and dense")
    parser.add_argument("--json", metavar="FILE", help="write every number; - is stdout, in place of the table")
    parser.add_argument("--plot", metavar="FILE", help="draw the trade-off, as .png, .svg or .pdf")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", choices=["residual", "normed"], help="what they read (default: residual)")
    parser.add_argument("--hidden-act", choices=["relu", "none"], help="between the matrices (default: relu)")
    parser.add_argument("--store", default="auto", metavar="FORMAT", help="of the matrices (default: as they are)")
    parser.add_argument("--force", action="store_true", help="take them whatever their recall is")


def run(args: argparse.Namespace) -> int:
    if args.action == "eval":
        return _eval(args)
    path = Path(args.output)
    _check_output(path, args)
    from ..study import predictors as study  # heavy: torch and transformers

    if args.action == "export":
        from ..weights.predictor import Predictor

        predictor = Predictor.load(args.path)
        study.export_powerinfer(_load(args), predictor, path)
        sys.stderr.write(f"prosparse: wrote {path}\n")
        return _told(args, predictor)
    given: dict[str, Any] = {"weights": args.store, "progress": measured.bars()}
    given |= options.given(args, ("text", "tokens"))
    engine = _load(args)
    if args.action == "import":
        given |= options.given(args, ("input", "hidden_act", "force"))
        predictor = study.import_powerinfer(engine, args.path, **given)
    else:
        given |= {"rank": _rank(args.rank)} | options.given(args, ("target_recall", "within"))
        predictor = _train(args, engine, path, given) if args.action == "train" else _build(args, engine, given)
    predictor.save(path)
    sys.stderr.write(f"prosparse: wrote {path} ({path.stat().st_size / 1e6:.2f} MB)\n")
    return _told(args, predictor)


def _build(args: argparse.Namespace, engine: Engine, given: dict[str, Any]) -> Predictor:
    from ..study.predictors import build

    return build(engine, KINDS[args.kind], **given, **options.given(args, ("target_kl", "machine")))


def _train(args: argparse.Namespace, engine: Engine, path: Path, given: dict[str, Any]) -> Predictor:
    from ..study.predictors import train

    given |= options.given(args, ("hidden_act", "epochs", "seed")) | {"powerinfer": args.powerinfer}
    if args.disk is not None:
        given["disk"] = predictor_report.parse_size(args.disk)
    return train(engine, args.work or path.with_name(path.name + ".work"), **given)


def _eval(args: argparse.Namespace) -> int:
    if args.recording is not None:
        from ..study.predictors import Recording, judge_recording

        found = judge_recording(Recording(args.recording))
        return _shown(args, found, predictor_report.recording_table(found))
    from ..study import predictors as study  # heavy: torch and transformers
    from ..study.predictors.figure import check_plot, draw
    from ..weights.predictor import Predictor

    if args.plot is not None:
        check_plot(args.plot)
    engine = _load(args)
    bars = measured.bars()
    if args.predictor:
        names = [Path(path).stem for path in args.predictor]
        if len(set(names)) < len(names):
            names = args.predictor
        pairs = zip(names, args.predictor, strict=True)
        entrants = [study.Entrant(name, None, Predictor.load(path)) for name, path in pairs]
    else:
        entrants = study.without_training(engine, progress=bars, **options.given(args, ("text", "tokens")))
    given = options.given(args, ("predictions", "target_kl"))
    time = (lambda which: predictor_report.decode_speeds(engine, which)) if args.time else None
    document = study.evaluate(engine, entrants, text=args.held_out, time=time, progress=bars, **given)
    if args.plot is not None:
        draw(document, args.plot)
        sys.stderr.write(f"prosparse: wrote {args.plot}\n")
    return _shown(args, document, predictor_report.table(document))


def _shown(args: argparse.Namespace, document: dict[str, Any], table: str) -> int:
    from ..weights.whole_files import write_whole

    text = json.dumps(document, indent=1) + "\n"
    if args.json is not None and args.json != "-":
        write_whole({Path(args.json): text.encode()})
        sys.stderr.write(f"prosparse: wrote {args.json}\n")
    sys.stdout.write(text if args.json == "-" else table)
    return 0


def _told(args: argparse.Namespace, predictor: Predictor) -> int:
    if args.json:
        sys.stdout.write(json.dumps({"kind": predictor.kind, **predictor.about}, indent=1) + "\n")
    else:
        sys.stdout.write(predictor_report.made_table(predictor.about))
    return 0


def _load(args: argparse.Namespace) -> Engine:
    from ..engine import load  # heavy: torch and transformers

    given = options.given(args, ("weights", "device", "threads", "context", "fatrelu_threshold"))
    # the prefill of every mode is dense, and reading is all that is done
    return load(args.model, mode="dense", progress=options.progress_bar("loading"), **given)


def _rank(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"predictor: --rank must be auto or a whole number, got {text!r}") from None


def _check_output(path: Path, args: argparse.Namespace) -> None:
    if args.action == "export":
        if path.exists() and (not path.is_dir() or any(path.iterdir())) and not args.overwrite:
            raise UserError(f"predictor: {path} is not an empty folder; choose another, or --overwrite to add to it")
        return
    if path.is_dir():
        raise UserError(f"predictor: {path} is a folder; give a file to write")
    if path.exists() and not args.overwrite:
        raise UserError(f"predictor: {path} exists; choose another file, or --overwrite to replace it")
