"""Train a small ReLU-sparse LLaMA from text, on the CPU or one GPU, and export it in Hugging Face's format.

    python tools/train_embedded.py start RUN --text FOLDER      tokenizer, tokens, then training
    python tools/train_embedded.py resume RUN                   goes on after a kill, to the same bits on a CPU
    python tools/train_embedded.py decay RUN --tokens 2e6       a run in progress ends after so many more tokens
    python tools/train_embedded.py finish RUN -o MODEL          threshold sweep, export, card, README

RUN is a folder: checkpoint.pt, log.jsonl and all that these commands need. docs/training.md says what they do and why.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from make_excerpts import read_text
from tokenizers import Tokenizer
from training import finish as finishing
from training import prepare, text
from training.model import Shape
from training.run import CHECKPOINT, DECAY_REQUEST, Run, Settings
from training.schedule import Schedule
from training.start import read_shape


def token_count(value: str) -> int:
    """Tokens, also written as 2e6."""
    return int(float(value))


def numbers(value: str) -> tuple[float, ...]:
    return tuple(float(part) for part in value.split(",") if part)


def add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", nargs="+", type=Path, required=True, help="text files, or folders with *.txt and *.txt.xz"
    )
    parser.add_argument("--init", type=Path, help="begin with this folder's weights, sizes and tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to use; left out, one is trained")
    parser.add_argument("--calibration", type=Path, help="untrained text; left out, cut from the ends of the books")
    parser.add_argument("--held-out", type=Path, help="other untrained text; left out, cut in the same way")
    parser.add_argument("--books", type=Path, help="a books.tsv that names the books, for the card")

    sizes = parser.add_argument_group("sizes, without --init")
    for field, default in Shape().as_dict().items():
        option = f"--{field.replace('_', '-')}"
        sizes.add_argument(option, type=int, default=default, metavar="N", help=f"(default: {default})")

    plan = parser.add_argument_group("schedule, in tokens: nothing depends on time")
    plan.add_argument("--tokens", type=token_count, default=20_000_000, metavar="N", help="to train on (default: 20e6)")
    plan.add_argument("--decay-share", type=float, default=0.4, help="of them, in the decay to zero (default: 0.4)")
    plan.add_argument("--warmup", type=token_count, default=131_072, metavar="N", help="(default: 131072)")
    plan.add_argument(
        "--l1", type=numbers, default=(), metavar="F,F,...", help="penalty factors of the warm-up and sine stages"
    )
    plan.add_argument(
        "--l1-ends",
        type=numbers,
        default=(0.5, 0.6, 0.75, 0.9),
        metavar="S,S,...",
        help="shares of --tokens at which the part without penalty and each stage end (default: 0.5,0.6,0.75,0.9)",
    )
    plan.add_argument(
        "--revive", type=float, default=0.0, metavar="S", help="renew --init's neurons active on fewer tokens than S"
    )

    steps = parser.add_argument_group("steps")
    steps.add_argument("--step-windows", type=int, default=16, help="windows of one step (default: 16)")
    steps.add_argument("--micro-windows", type=int, default=8, help="windows in memory at once (default: 8)")
    steps.add_argument("--muon-lr", type=float, default=2e-3, help="peak rate of the layers' matrices (default: 2e-3)")
    steps.add_argument("--adam-lr", type=float, default=2e-3, help="peak rate of the rest (default: 2e-3)")
    steps.add_argument("--seed", type=int, default=0, help="of weights and of the order of the text (default: 0)")
    steps.add_argument("--compile", action="store_true", help="torch.compile: worth it on a GPU")
    steps.add_argument("--every", type=float, default=240.0, help="CPU seconds between checkpoints (default: 240)")


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def start(args: argparse.Namespace) -> Run:
    """Prepare the folder and begin."""
    if (args.run / CHECKPOINT).exists():
        raise SystemExit(f"{args.run}: a run has begun there; go on with `resume`, or name another folder")
    if args.init and args.tokenizer:
        raise SystemExit("--tokenizer: --init brings its own tokenizer; leave one of them out")
    if args.revive and not args.init:
        raise SystemExit("--revive: random weights have no idle neurons; it belongs to --init")
    if bool(args.calibration) != bool(args.held_out):
        raise SystemExit("--calibration, --held-out: give both or neither")
    books = text.read_all(text.find_files(args.text))
    names = prepare.name_books(books, args.books)
    shape = Shape(**{field: getattr(args, field) for field in Shape().as_dict()})
    if args.init:
        shape = read_shape(args.init)
    source = args.init / "tokenizer.json" if args.init else args.tokenizer
    tokenizer = Tokenizer.from_file(str(source)) if source else text.train_tokenizer(books, shape.vocab)
    if tokenizer.get_vocab_size() > shape.vocab:
        raise SystemExit(f"--vocab: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {shape.vocab}")
    if args.calibration:
        untrained = {"calibration": read_text(args.calibration), "held_out": read_text(args.held_out)}
    else:
        untrained = text.untrained_texts(books)
    prepare.write_folder(args.run, tokenizer, text.training_tokens(tokenizer, books), untrained, names)

    settings = Settings(
        shape=shape,
        micro_windows=args.micro_windows,
        step_windows=args.step_windows,
        muon_lr=args.muon_lr,
        adam_lr=args.adam_lr,
        seed=args.seed,
        device=args.device or default_device(),
        compiled=args.compile,
        every_s=args.every,
        provenance={
            "command": shlex.join(["python", *sys.argv]),
            "init": args.init.name if args.init else None,
            "text": [path.name for path in text.find_files(args.text)],
        },
    )
    ends = args.l1_ends if args.l1 else ()
    decay_from = int(args.tokens * (1 - args.decay_share))
    schedule = Schedule(min(args.warmup, decay_from), decay_from, args.tokens, args.l1, ends)
    return prepare.begin(args.run, settings, schedule, args.init, args.revive)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verbs = {
        "start": "begin a run from text",
        "resume": "go on with a run from its checkpoint",
        "decay": "tell a run, in progress or not, to decay from now on and end",
        "finish": "export the model that a run has reached",
    }
    parsers = {verb: commands.add_parser(verb, help=words, description=words) for verb, words in verbs.items()}
    for command in parsers.values():
        command.add_argument("run", type=Path, metavar="RUN", help="the folder of the run")
    add_start(parsers["start"])
    for verb in ("start", "resume"):
        add_machine(parsers[verb])
        parsers[verb].add_argument("--stop-at", type=token_count, metavar="N", help="pause after so many tokens")
    parsers["decay"].add_argument("--tokens", type=token_count, required=True, help="that the decay lasts")
    finishing.add_arguments(parsers["finish"])
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.command == "decay":
        (args.run / DECAY_REQUEST).write_text(str(args.tokens))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "finish":
        finishing.finish(args)
        return
    run = start(args) if args.command == "start" else prepare.resume(args.run, args.device)
    run.train(args.stop_at)


if __name__ == "__main__":
    main()
