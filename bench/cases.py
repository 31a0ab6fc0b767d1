"""What `python -m prosparse.bench` runs. A new subject is a file and a line here; the part of a name before the first
hyphen is the subject.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .adaptive import compare_adaptive
from .decode import compare
from .embedded_predictors import compare_embedded
from .ffn import compare_ffn
from .hybrid import compare_hybrid
from .load import compare_load
from .lookup import compare_lookup
from .modes import Run
from .ops import compare_ops
from .predictors import compare_predictors
from .prefill import compare_prefill
from .quality import compare_quality
from .row import Row

Case = Callable[..., list[Row]]  # called with progress=
ONE, SEVEN, OPT = "minicpm-s-1b", "prosparse-llama-2-7b", "opt-6.7b"
LLAMA_CPP = Run(tg=128, against=("llama-cpp",))
EAGER_AND_COMPILED = Run(tg=64, against=("transformers-eager", "transformers-compile"))


def _generate(*arguments: Any, **options: Any) -> list[Row]:
    from .generate import compare_generate  # seconds of imports of transformers, for those who ask for it

    return compare_generate(*arguments, **options)


# 0.88 is MiniCPM-S-1B's published activation sparsity, 0.89 that of ProSparse-LLaMA-2-7B, 0.97 that of OPT (96 to 98 %:
# Song et al., "PowerInfer", 2023)
CASES: dict[str, Case] = {
    "decode-1b-bf16": partial(compare, ONE, 0.88, weights="bf16", run=Run(tg=128)),
    "decode-1b-int8": partial(compare, ONE, 0.88, weights="int8", run=Run(tg=128)),
    "decode-1b-int4": partial(compare, ONE, 0.88, weights="int4", run=Run(tg=128)),
    "decode-1b-fp32": partial(compare, ONE, 0.88, weights="fp32", run=Run(tg=64)),
    "decode-7b-bf16": partial(compare, SEVEN, 0.89, weights="bf16", run=Run(tg=32)),
    "decode-7b-int8": partial(compare, SEVEN, 0.89, weights="int8", run=Run(tg=48)),
    "decode-7b-int4": partial(compare, SEVEN, 0.89, weights="int4", run=Run(tg=64)),
    "decode-opt-bf16": partial(compare, OPT, 0.97, weights="bf16", run=Run(tg=32)),
    "decode-opt-int4": partial(compare, OPT, 0.97, weights="int4", run=Run(tg=64)),
    "ffn-1b-bf16": partial(compare_ffn, ONE, weights="bf16", calls=300),
    "ffn-1b-int8": partial(compare_ffn, ONE, weights="int8", calls=300),
    "ffn-1b-int4": partial(compare_ffn, ONE, weights="int4", calls=300),
    "ffn-1b-fp32": partial(compare_ffn, ONE, weights="fp32", calls=200),
    "ffn-7b-bf16": partial(compare_ffn, SEVEN, weights="bf16", calls=100),
    "ffn-opt-bf16": partial(compare_ffn, OPT, weights="bf16", calls=100),
    "adaptive-1b-bf16": partial(compare_adaptive, ONE, "bf16"),
    "adaptive-1b-int8": partial(compare_adaptive, ONE, "int8"),
    "adaptive-1b-int4": partial(compare_adaptive, ONE, "int4"),
    "ops-1b-bf16": partial(compare_ops, ONE, "bf16", 0.88),
    "ops-1b-int8": partial(compare_ops, ONE, "int8", 0.88),
    "ops-1b-int4": partial(compare_ops, ONE, "int4", 0.88),
    "ops-opt-bf16": partial(compare_ops, OPT, "bf16", 0.97, calls=100),
    "prefill-1b-bf16": partial(compare_prefill, ONE, weights="bf16", layers=13),
    "prefill-1b-int8": partial(compare_prefill, ONE, weights="int8", layers=13),
    "prefill-1b-int4": partial(compare_prefill, ONE, weights="int4", layers=13),
    "prefill-opt-bf16": partial(compare_prefill, OPT, weights="bf16", layers=3),
    "batch-1b-bf16": partial(compare, ONE, 0.88, weights="bf16", run=Run(tg=24), batches=(2, 4, 8, 16)),
    "batch-1b-int8": partial(compare, ONE, 0.88, weights="int8", run=Run(tg=32), batches=(2, 4, 8, 16)),
    "batch-1b-int4": partial(compare, ONE, 0.88, weights="int4", run=Run(tg=32), batches=(2, 4, 8, 16)),
    "lookup-1b-bf16": partial(compare_lookup, ONE, weights="bf16"),
    "lookup-1b-int8": partial(compare_lookup, ONE, weights="int8"),
    "lookup-1b-int4": partial(compare_lookup, ONE, weights="int4"),
    "predictors-1b-bf16": partial(compare_predictors, ONE, 0.88, weights="bf16"),
    "predictors-1b-int8": partial(compare_predictors, ONE, 0.88, weights="int8"),
    "predictors-embedded": compare_embedded,
    "predictors-opt-bf16": partial(compare_predictors, OPT, 0.97, weights="bf16"),
    "load-1b": compare_load,
    "generate-1b-bf16": partial(_generate, ONE, 0.88, weights="bf16"),
    "quality-embedded": compare_quality,
    "hybrid-7b-bf16": partial(compare_hybrid, SEVEN, 0.89),
    "hybrid-7b-int4": partial(compare_hybrid, SEVEN, 0.89, weights="int4"),
    "hybrid-13b-bf16": partial(compare_hybrid, "prosparse-llama-2-13b", 0.888),
    "hybrid-70b-int4": partial(compare_hybrid, "relullama-70b", 0.7, weights="int4", tokens=4),
    "engines-1b-transformers-bf16": partial(compare, ONE, 0.88, weights="bf16", run=EAGER_AND_COMPILED),
    "engines-1b-llama-cpp-bf16": partial(
        compare, ONE, 0.88, weights="bf16", run=Run(tg=128, against=("llama-cpp", "llama-cpp-fp16"))
    ),
    "engines-1b-llama-cpp-int8": partial(compare, ONE, 0.88, weights="int8", run=LLAMA_CPP),
    "engines-1b-llama-cpp-int4": partial(compare, ONE, 0.88, weights="int4", run=LLAMA_CPP),
}
QUICK: dict[str, Case] = {
    "decode-1b-bf16": partial(compare, ONE, 0.88, weights="bf16", run=Run(tg=32)),
    "ffn-1b-bf16": partial(compare_ffn, ONE, weights="bf16", calls=50),
}


def subjects() -> list[str]:
    """The first words of the names, in order."""
    return list(dict.fromkeys(name.split("-")[0] for name in CASES))


def chosen(names: list[str] | None, table: dict[str, Case]) -> dict[str, Case]:
    """Cases by name or by subject; all of the table where no name is given."""
    if names is None:
        return table
    return {name: case for name, case in table.items() if name in names or name.split("-")[0] in names}
