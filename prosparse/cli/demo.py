"""prosparse demo: the main job on real text, mode beside mode, and what it is worth at a real size."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ..engine import Engine, Generation

NAME = "demo"
HELP = "the packaged model writes, dense, exact and predicted side by side"
DESCRIPTION = (
    "The packaged model continues three prompts, dense, exact and predicted side by side: same tokens or not, "
    "activation sparsity, speed. Then dense against exact decode speed on the shape of MiniCPM-S-1B, with synthetic "
    "weights."
)
PROMPTS = ("The little girl looked at the", '"I do not know," said', "The old king sat by the fire and")
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_k": 40, "seed": 1}
TITLES = {
    "dense": "dense: every neuron computed",
    "exact": "exact: zeros skipped",
    "predicted": "predicted: zeros guessed, not exact",
}
SPEED_SHAPE, SPEED_SPARSITY = "minicpm-s-1b", 0.88


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="tokens per prompt (default: 48)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per usable core)")
    parser.add_argument("--no-speed", action="store_true", help="leave out the speed part")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console  # heavy, like everything below, for --help

    from ..engine import load

    console = Console(stderr=args.json, highlight=False)
    engines = {mode: load(mode=mode, threads=args.threads) for mode in TITLES}
    for engine in engines.values():
        engine.generate(PROMPTS[0], max_new_tokens=4)  # threads start and memory is touched before anything is timed
    _introduce(console, engines["exact"])
    texts = [_write(console, engines, prompt, args.max_new_tokens) for prompt in PROMPTS]
    same = _conclude(console, engines["exact"], texts)
    rows = [] if args.no_speed else _race(console)
    if args.json:
        document = {
            "same_tokens": same,
            "texts": [
                {"prompt": prompt, **{mode: {"text": r.text, "stats": r.stats} for mode, r in each.items()}}
                for prompt, each in zip(PROMPTS, texts, strict=True)
            ],
            "rows": rows,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return 0 if same else 1


def _introduce(console: Console, engine: Engine) -> None:
    from ..machine import describe

    config = engine.config
    console.rule("[bold]prosparse demo")
    console.print(
        f"A small ReLU-gated llama, trained from scratch on children's books: {config.layers} layers of "
        f"{config.neurons} neurons, {config.activation}, {engine.weights} weights. It continues three prompts in "
        f"three ways, sampled with the same seed ({SAMPLING['seed']}): computing every neuron (dense), only those that "
        "are not zero (exact), or only those that a small predictor names (predicted)."
    )
    console.print(f"[dim]{describe(engine.decoder.device)}[/dim]\n")


def _write(console: Console, engines: dict[str, Engine], prompt: str, tokens: int) -> dict[str, Generation]:
    from rich.table import Table
    from rich.text import Text

    found = {mode: engine.generate(prompt, max_new_tokens=tokens, **SAMPLING) for mode, engine in engines.items()}
    table = Table(expand=True, show_edge=False, pad_edge=False, title_justify="left", padding=(0, 2, 0, 0))
    for mode in found:
        table.add_column(TITLES[mode], ratio=1)
    table.add_row(*(Text.assemble((prompt, "bold"), result.text.replace("\n", " ")) for result in found.values()))
    table.add_row(*(f"[dim]{_figures(result.stats)}[/dim]" for result in found.values()))
    console.print(table)
    dense, exact, predicted = (found[mode].token_ids for mode in TITLES)
    verdict = "[green]the same" if dense == exact else "[red]NOT the same"
    agreed = next((i for i, (a, b) in enumerate(zip(dense, predicted, strict=False)) if a != b), len(dense))
    guessed = "the same as well" if agreed == len(dense) else f"another text from token {agreed + 1} on"
    console.print(f"dense and exact: {verdict} {len(dense)} tokens[/]; predicted: {guessed}\n")
    return found


def _figures(stats: dict[str, Any]) -> str:
    speed = f"{stats['tokens_per_s']:.0f} tokens/s" if stats["tokens_per_s"] else ""
    read = f"{stats['bytes_per_token'] / 1e6:.1f} MB read per token" if stats["bytes_per_token"] else ""
    return ", ".join(part for part in (speed, read) if part)


def _conclude(console: Console, engine: Engine, texts: list[dict[str, Generation]]) -> bool:
    same = all(each["dense"].token_ids == each["exact"].token_ids for each in texts)
    tokens = sum(len(each["exact"].token_ids) for each in texts)
    share = [each["exact"].stats["activation_sparsity"] for each in texts]
    if all(share):
        layers = [sum(s["layers"][i] for s in share) / len(share) for i in range(engine.config.layers)]
        console.print("Activation sparsity: neurons at exactly zero, whose up and down weights exact never reads")
        bar = "█" if console.encoding.startswith("utf") else "#"
        for i, value in enumerate(layers):
            console.print(f"  layer {i}  {bar * round(40 * value):<40} {value:6.1%}")
        console.print(f"  mean     {'':40} {sum(layers) / len(layers):6.1%}")
    verdict = "[green]identical[/green]" if same else "[red]different[/red]"
    console.print(f"\n{tokens} tokens written twice, dense and exact: {verdict}")
    console.print(
        "[dim]This model fits into the processor's cache, so its tokens/s say little about large ones.[/dim]\n"
    )
    return same


def _race(console: Console) -> list[dict[str, Any]]:
    from ..bench.decode import compare  # heavy
    from ..bench.progress import progress_line
    from ..bench.table import render

    console.rule(f"[bold]the same at a real size: the shape of {SPEED_SHAPE}")
    console.print(
        f"The weights are synthetic: random numbers in that shape, so large that no cache holds them, made so that "
        f"{SPEED_SPARSITY:.0%} of the neurons are at zero as in the real model, some hardly ever and others often "
        "active. One decode token dense, one exact, in turns (about a minute with making them).\n"
    )
    rows = compare(SPEED_SHAPE, SPEED_SPARSITY, progress=progress_line("demo"))
    console.print(render(rows))
    return rows
