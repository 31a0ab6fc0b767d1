"""What `python -m prosparse.bench` runs. A new op or subject gets a row here."""

from __future__ import annotations

from collections.abc import Callable

from .decode import compare
from .ffn import compare_ffn
from .modes import Progress, Run
from .row import Row

Case = Callable[[Progress | None], list[Row]]


def _decode(shape: str, sparsity: float, weights: str, tg: int) -> Case:
    return lambda progress: compare(shape, sparsity, weights=weights, run=Run(tg=tg), progress=progress)


def _ffn(shape: str, weights: str, calls: int) -> Case:
    return lambda progress: compare_ffn(shape, weights=weights, calls=calls, progress=progress)


# 0.88 is MiniCPM-S-1B's published activation sparsity, 0.89 that of ProSparse-LLaMA-2-7B, 0.67 ReluLLaMA-7B's
CASES: dict[str, Case] = {
    "decode-1b-bf16": _decode("minicpm-s-1b", 0.88, "bf16", 128),
    "decode-1b-int8": _decode("minicpm-s-1b", 0.88, "int8", 128),
    "decode-1b-int4": _decode("minicpm-s-1b", 0.88, "int4", 128),
    "decode-1b-fp32": _decode("minicpm-s-1b", 0.88, "fp32", 64),
    "decode-7b-bf16": _decode("prosparse-llama-2-7b", 0.89, "bf16", 32),
    "decode-7b-int8": _decode("prosparse-llama-2-7b", 0.89, "int8", 48),
    "decode-7b-int4": _decode("prosparse-llama-2-7b", 0.89, "int4", 64),
    "ffn-1b-bf16": _ffn("minicpm-s-1b", "bf16", 300),
    "ffn-1b-int8": _ffn("minicpm-s-1b", "int8", 300),
    "ffn-1b-int4": _ffn("minicpm-s-1b", "int4", 300),
    "ffn-1b-fp32": _ffn("minicpm-s-1b", "fp32", 200),
    "ffn-7b-bf16": _ffn("prosparse-llama-2-7b", "bf16", 100),
}
QUICK: dict[str, Case] = {
    "decode-1b-bf16": _decode("minicpm-s-1b", 0.88, "bf16", 32),
    "ffn-1b-bf16": _ffn("minicpm-s-1b", "bf16", 50),
}
