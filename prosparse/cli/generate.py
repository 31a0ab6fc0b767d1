"""prosparse generate: continue a prompt."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, UserError
from . import options

NAME = "generate"
HELP = "continue a prompt with a model"
DESCRIPTION = "Continue a prompt. The text is streamed to stdout as it comes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue; - reads stdin")
    prompt.add_argument("--prompt-file", metavar="FILE", help="a file with the text to continue")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message: use the model's chat template")
    parser.add_argument("--stats", action="store_true", help="print speed and activation sparsity to stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the text")
    options.add_loading(parser)
    options.add_placing(parser)
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import load  # heavy: torch and transformers

    text = _prompt(args)
    sampling = options.sampling(args)
    bar = options.progress_bar("loading")
    engine = load(args.model, progress=bar, **options.given(args, options.LOADING + options.PLACING))
    prompt: Any = engine.tokenizer.chat([{"role": "user", "content": text}]) if args.chat else text
    reading = options.progress_bar("reading the prompt", unit=" tokens")
    if args.json:
        result = engine.generate(prompt, progress=reading, **sampling)
        document = {
            "prompt": text,
            "text": result.text,
            "token_ids": result.token_ids,
            "finish_reason": result.finish_reason,
            "stats": result.stats,
        }
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    else:
        pieces = engine.stream(
            prompt, progress=reading, **sampling
        )  # refuses what it cannot continue before anything is shown
        if not args.chat:
            sys.stdout.write(text)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    if args.stats:
        sys.stderr.write(summary(engine.stats) + "\n")
    return 0


def summary(stats: dict[str, Any]) -> str:
    """The stats of a run in one line for a person."""
    parts = [f"{stats['prefill_tokens']} prompt tokens, first token after {stats['ttft_s'] * 1000:.0f} ms"]
    if stats["tokens_per_s"]:
        parts.append(f"{stats['decode_tokens']} decode tokens at {stats['tokens_per_s']:.1f} tokens/s")
    if stats["activation_sparsity"]:
        parts.append(f"activation sparsity {stats['activation_sparsity']['mean']:.1%}")
        if stats["predicted_sparsity"]:
            parts.append(f"predicted sparsity {stats['predicted_sparsity']['mean']:.1%}")
        if stats["audit"] and stats["audit"]["recall"]["mean"] is not None:
            parts.append(f"recall {stats['audit']['recall']['mean']:.2%} in {stats['audit']['steps']} audited steps")
        parts.append(f"{stats['bytes_per_token'] / 1e6:.1f} MB read per token")
    if stats["prompt_lookup"]:
        parts.append("{accepted} of {drafted} tokens tried ahead were right".format(**stats["prompt_lookup"]))
    if stats["cold"] and stats["cold"]["share"] is not None:
        cold = stats["cold"]
        skipped = f"which had nothing to do {cold['skipped']} of {cold['parts']} times"
        parts.append(f"{cold['share']:.1%} of the active neurons of shared layers on the CPU, {skipped}")
        if cold["moved"]:
            parts.append(f"{cold['moved']['pairs']} pairs of neurons changed places")
    return "; ".join(parts) + f" ({stats['kernels']})"


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt_file is None and args.prompt != "-":
        return args.prompt
    source = args.prompt_file or "stdin"
    try:
        data = sys.stdin.buffer.read() if args.prompt_file is None else Path(args.prompt_file).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise MissingFileError(f"{source}: cannot read the prompt ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: not UTF-8 text ({error.reason} at byte {error.start}); convert it, for example with iconv"
        ) from error
