"""Greedy texts of two ways to compute one model: where they part, and whether rounding decided that.

A first difference is forgiven only where the two likeliest tokens are closer than a stated gap, or a gate lies within
rounding of the FATReLU threshold.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from float64_forward import forward

import prosparse
from prosparse.engine.load import EMBEDDED_MODEL

GAPS = {"fp32": 1e-3, "bf16": 0.05}


def prompts_of(count: int) -> list[str]:
    """Places spread over the packaged held-out text, 40 to 100 characters each."""
    text = lzma.decompress((EMBEDDED_MODEL.parent / "text" / "held_out.txt.xz").read_bytes()).decode()
    starts = range(0, len(text) - 200, len(text) // count)
    return [text[start : start + 40 + i % 61].strip() for i, start in enumerate(starts)][:count]


def first_differences(
    expected: Sequence[prosparse.Generation], found: Sequence[prosparse.Generation]
) -> dict[int, int]:
    """Step of the first difference, by number of the prompt."""
    steps = {
        n: first_difference(a.token_ids, b.token_ids) for n, (a, b) in enumerate(zip(expected, found, strict=True))
    }
    return {n: step for n, step in steps.items() if step is not None}


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    assert len(expected) == len(found)
    return next((i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b), None)


def assert_rounding_decides(
    ids: list[int], allowed: float, logits: Callable[[list[int]], torch.Tensor], folder: Path
) -> None:
    first, second = logits(ids).topk(2).values.tolist()
    if first - second < allowed:
        return
    threshold = prosparse.ModelConfig.from_hf(folder).activation.threshold
    trace = forward(folder, ids)
    largest = max(float(gate.abs().max()) for gate in trace.gates)
    distance = trace.nearest_to(threshold)
    assert threshold > 0 and distance < 1e-6 * largest, (
        f"another token after {len(ids)}, where the two likeliest are {first - second:.3f} apart and the nearest gate "
        f"is {distance:.1e} from the threshold"
    )
