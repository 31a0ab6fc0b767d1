"""What `measure` and `profile` share: the options that say what is read, and the model that reads it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import options

BACKENDS = ("prosparse", "transformers")
OF_TRANSFORMERS = ("weights", "device", "threads")  # loading options that it shares


def add_reading(parser: argparse.ArgumentParser, packaged: str) -> None:
    options.add_model(parser)
    parser.add_argument(
        "--text", metavar="F", help=f"UTF-8 file, or folder of .txt and .md files (default: the packaged {packaged})"
    )
    parser.add_argument("--window", type=int, metavar="N", help="tokens read from nothing at a time (default: 512)")
    parser.add_argument("--batch", type=int, metavar="N", help="windows read at once with transformers (default: 8)")
    parser.add_argument("--tokens", type=int, metavar="N", help="stop after about N tokens (default: the whole text)")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="prosparse", help="what runs the model (default: prosparse)"
    )


def load_model(args: argparse.Namespace) -> tuple[Any, Any, str]:
    """The model, the tokenizer it needs, and its name."""
    from ..engine import load  # heavy: torch and transformers
    from ..engine.load import EMBEDDED_MODEL

    name = EMBEDDED_MODEL.name if args.model is None else Path(args.model).name or str(args.model)
    given = options.given(args, options.LOADING)
    if args.backend == "transformers":
        return (*_load_transformers(str(args.model or EMBEDDED_MODEL), given), name)
    return load(args.model, progress=options.progress_bar("loading"), **given), None, name


def bars() -> Callable[[str, int, int], None] | None:
    """A bar on stderr for each stage, where stderr is a terminal."""
    if options.progress_bar("") is None:
        return None
    shown: dict[str, Callable[[int, int], None] | None] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = options.progress_bar(what, unit="")
        bar = shown[what]
        if bar is not None and total:
            bar(done, total)

    return update


def _load_transformers(model: str, given: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    from prosparse.kernels.weight import FORMATS

    from .. import machine
    from ..engine.load import set_threads
    from ..hf import register

    weights = given.get("weights", "auto")
    known = [fmt for fmt, dtype in FORMATS.items() if dtype.is_floating_point]
    unknown = [name for name in given if name not in OF_TRANSFORMERS and given[name] != "auto"]
    if unknown or weights not in ("auto", *known):
        what = f"--weights {weights}" if not unknown else "--" + unknown[0].replace("_", "-")
        raise UserError(f"measure: {what} does not go with --backend transformers; leave it out")
    if "threads" in given:
        set_threads(given["threads"])
    register()
    try:
        dtype: Any = "auto" if weights == "auto" else FORMATS[weights]
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{model}: transformers cannot load it: {str(fault).splitlines()[0]}") from fault
    return loaded.to(machine.resolve_device(given.get("device", "auto"))).eval(), tokenizer
