"""Subject "decode": synthetic weights of a real shape, or a real model, timed in several modes."""

from __future__ import annotations

import dataclasses
import lzma
from collections.abc import Sequence
from pathlib import Path

import torch

from prosparse import machine
from prosparse.config import ModelConfig
from prosparse.config.shapes import shape as shape_named
from prosparse.engine.load import EMBEDDED_MODEL, assemble, load
from prosparse.errors import UserError
from prosparse.placement import choose
from prosparse.weights.synthetic import Knobs, synthetic_weights, walk, weight_bytes

from .modes import Run, time_decoder
from .probe import BUFFER_BYTES
from .progress import Progress, stage
from .row import Row

DEFAULT_RUN = Run(budget_s=20)
TEXT = EMBEDDED_MODEL.parent / "text" / "held_out.txt.xz"
SMALL_MEMORY = 10 * 10**9  # bytes free; below, only a part of the layers is run


def compare(
    shape: str = "minicpm-s-1b",
    knobs: Knobs | float = 0.88,
    modes: Sequence[str] = ("dense", "exact"),
    weights: str = "bf16",
    run: Run = DEFAULT_RUN,
    progress: Progress | None = None,
    batches: Sequence[int] = (),
) -> list[Row]:
    """Time the modes on synthetic weights of a real shape.

    Where less than 10 GB of memory are free, fewer layers of the same shape are run, and the rows' notes say so.

    Args:
        shape: a name of `prosparse.config.shapes`.
        knobs: of the weights, or their activation sparsity alone, from 0 to 1.
        modes: of `prosparse.plan.MODES`; ratios are against dense, if it is among them.
        weights: format.
        run: how long.
        progress: called with (stage, done, total).
        batches: sequences that decode together, one run for each over the same weights; none is that of `run`.

    Returns:
        One row per batch and mode.

    Raises:
        UserError: no such shape, mode or format, or a knob out of range.
        MachineError: not enough memory, or the modes do not give the same result.
    """
    full = shape_named(shape)
    config = fit_layers(full, weights)
    tensors, settled = synthetic_weights(config, weights, knobs, progress=stage(progress, "making weights"))
    decoder = assemble(config, tensors, choose(config, "dense"), run.pp + run.tg)
    note = f"{config.layers} of {full.layers} layers: little memory is free" if config.layers < full.layers else None
    labels = {"shape": shape, "synthetic": settled.as_dict(), "note": note}
    return [
        row
        for batch in batches or (run.batch,)
        for row in time_decoder(
            decoder,
            torch.stack([walk(config.vocab, run.pp + run.tg, seed) for seed in range(batch)]),
            modes,
            dataclasses.replace(run, batch=batch),
            progress,
            **labels,
        )
    ]


def compare_model(
    model: str | Path | None = None,
    modes: Sequence[str] = ("dense", "exact"),
    weights: str = "auto",
    run: Run = DEFAULT_RUN,
    progress: Progress | None = None,
    fatrelu_threshold: float | None = None,
    batches: Sequence[int] = (),
) -> list[Row]:
    """Time the modes on a real model, which is given English text, so that its activation sparsity is real too.

    Args:
        model: see `prosparse.load`; None is the packaged model.
        modes, run, progress: see `compare`.
        weights: format, or "auto".
        fatrelu_threshold: see `prosparse.load`.
        batches: see `compare`; every sequence is another part of the text.

    Returns:
        One row per batch and mode.

    Raises:
        UserError: see `prosparse.load`.
        MachineError: not enough memory, or the modes do not give the same result.
    """
    engine = load(
        model,
        "dense",
        weights,
        "cpu",
        context=run.pp + run.tg,
        fatrelu_threshold=fatrelu_threshold,
        progress=stage(progress, "loading"),
    )
    length, largest = run.pp + run.tg, max([run.batch, *batches])
    with lzma.open(TEXT, "rt", encoding="utf-8") as file:
        text = file.read(32 * length * largest)  # characters, more than its tokens could need
    ids = engine.tokenizer.encode(text)[: length * largest]
    if len(ids) < length * largest:
        raise UserError(
            f"bench: batch * (pp + tg) must be at most {len(ids)}, the tokens of the packaged text; got {run}"
        )
    tokens = torch.tensor(ids).view(largest, length)
    name = EMBEDDED_MODEL.name if model is None else Path(model).name or Path(model).resolve().name
    rows = []
    for batch in batches or (run.batch,):
        sized = dataclasses.replace(run, batch=batch)
        rows += time_decoder(engine.decoder, tokens[:batch], modes, sized, progress, model=name)
    return rows


def fit_layers(config: ModelConfig, weights: str) -> ModelConfig:
    """The shape with as many layers as a machine with little memory can spare, at least one."""
    free = machine.available_memory()
    if free >= SMALL_MEMORY:
        return config
    none = weight_bytes(dataclasses.replace(config, layers=1), weights)
    per_layer = weight_bytes(dataclasses.replace(config, layers=2), weights) - none
    spare = free // 3 - BUFFER_BYTES - none
    return dataclasses.replace(config, layers=max(1, min(config.layers, 1 + spare // per_layer)))
