"""Options that several commands share. Each equals a keyword of `prosparse.load` or `Engine.generate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

LOADING = (
    "mode",
    "weights",
    "lm_head",
    "device",
    "threads",
    "context",
    "fatrelu_threshold",
    "plan",
    "predictor",
    "audit",
    "deterministic",
)
PLACING = ("budget", "profile", "machine", "adapt")
SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "prompt_lookup",
    "sampling",
)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        help="folder with a Hugging Face model, a GGUF file, or a hub id (default: the packaged model)",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--mode",
        default="auto",
        help="auto, dense, exact or predicted (default: exact where the activation makes zeros, else dense)",
    )
    add_formats(group, "default: as stored; fp32 is held as bf16")
    add_running(group)
    group.add_argument("--plan", metavar="FILE", help="how each layer runs, from a plan file")
    group.add_argument("--predictor", metavar="FILE", help="guess the active neurons, with a predictor from a file")
    group.add_argument(
        "--audit", type=int, metavar="N", help="check the predictor every N steps; --stats says its recall"
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="the same bits for any number of threads; prompts take longer",
    )


def add_placing(parser: argparse.ArgumentParser) -> None:
    """What a model that is larger than the GPU needs."""
    group = parser.add_argument_group("on a GPU and the CPU together")
    group.add_argument(
        "--budget", metavar="SIZE", help="GPU memory for all of it, for example 8GiB; cold neurons stay with the CPU"
    )
    group.add_argument(
        "--profile", metavar="P", help="neuron activation counts (default: counted once on the packaged text)"
    )
    group.add_argument(
        "--machine",
        metavar="M",
        help="plan for a preset (8gb-pcie4, ..) or a description file (default: this one, measured)",
    )
    group.add_argument(
        "--adapt", metavar="SIZE", help="neurons may change places after each prompt, so many bytes, for example 256MiB"
    )


def add_running(group: argparse._ActionsContainer) -> None:
    """What says where a model runs, and as what."""
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: cuda where there is one)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per usable core)")
    group.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="most tokens of prompt and text together (default: as the model was made for, at most 4096)",
    )
    group.add_argument("--fatrelu-threshold", type=float, metavar="T", help="run the gate with FATReLU at T; 0 is ReLU")


def add_formats(group: argparse._ActionsContainer, default: str) -> None:
    group.add_argument(
        "--weights", default="auto", metavar="FORMAT", help=f"auto, fp32, fp16, bf16, int8 or int4 ({default})"
    )
    group.add_argument(
        "--lm-head", default="auto", metavar="FORMAT", help="the same for lm_head (default: as --weights)"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: greedy)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="stop after N tokens (default: 128)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the smallest set of tokens of probability P")
    group.add_argument("--min-p", type=float, metavar="P", help="drop tokens below P times the likeliest")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages tokens already seen")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same text")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the text before TEXT; may be repeated")
    group.add_argument(
        "--prompt-lookup",
        type=int,
        metavar="N",
        help="try up to N more tokens a step where the text repeats itself; the text stays the same (default: 0)",
    )
    group.add_argument("--sampling", choices=["model"], help="start from the model's generation_config.json")


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options a user set, by keyword."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options a user set, checked before a model is loaded."""
    from ..config import SamplingParams  # heavy for --help

    found = given(args, SAMPLING)
    SamplingParams(**{name: value for name, value in found.items() if name != "sampling"})
    return found


def progress_bar(what: str, unit: str = "B") -> Callable[[int, int], None] | None:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm  # heavy for --help

    bar = tqdm(desc=what, unit=unit, unit_scale=True, unit_divisor=1000, leave=False, delay=1.0)

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return update
