"""Subject "generate": `model.generate()` of transformers as it is, the same accelerated, and our engine on the folder.

`accelerate` speeds up FFNs alone, so it is held to Amdahl's limit, from FFNs that take turns with the texts:

    limit = T / (T - F + S)     T: a dense token, F: its FFNs, S: the same FFNs on our kernels, called by themselves

The two transformers models share all weights but down, which lies transposed in the accelerated one. A prompt of one
token makes every step a decode step.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prosparse.config.shapes import shape as shape_named
from prosparse.engine.load import load
from prosparse.errors import MachineError
from prosparse.hf import AutoModelForCausalLM, accelerate, restore, stats
from prosparse.weights.synthetic import write_synthetic

from .adapters import BOUND
from .clock import Timing, interleave
from .decode import fit_layers
from .probe import Probe, bandwidth
from .progress import Progress, stage
from .row import Row, make_row, measured

PROMPT = [7]
UNPATCHED = "transformers' own generate over the same weights in the same run"
TITLES = {"transformers": "dense", "accelerated": "exact", "engine": "exact"}


def compare_generate(
    shape: str = "minicpm-s-1b",
    sparsity: float = 0.88,
    weights: str = "bf16",
    tokens: int = 32,
    rounds: int = 10,
    layers: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Time whole texts, by token.

    Args:
        shape: a name of `prosparse.config.shapes`.
        sparsity: activation sparsity of its neurons.
        weights: "fp32", "fp16" or "bf16".
        tokens: of a text.
        rounds: texts of each.
        layers: only so many; None is all that fit.
        progress: called with (stage, done, total).

    Returns:
        A row each for transformers, the accelerated model, whose "quality" says share of the FFNs, limit and how much
        of it was reached, and our engine.

    Raises:
        UserError: no such shape or format.
        MachineError: no room for the folder, too little memory, or they do not compute the same.
    """
    full = shape_named(shape)
    config = fit_layers(full, weights)
    config = dataclasses.replace(config, layers=min(layers or config.layers, config.layers))
    with tempfile.TemporaryDirectory(prefix="prosparse-bench-") as temporary:
        folder = Path(temporary, "model")
        _, knobs = write_synthetic(shape, config, folder, sparsity, weights, progress=stage(progress, "making weights"))
        model: Any = restore(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
        engine = load(folder, "exact", weights, "cpu", context=tokens + len(PROMPT) + 1)
    twin = accelerate(_sharing(model), mode="exact")
    check({"transformers": model, "accelerated": twin}, engine.logits(PROMPT), weights)
    stats(twin, reset=True)
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    timed: dict[str, Callable[[int], object]] = {
        "transformers": lambda _: model.generate(torch.tensor([PROMPT]), **options, pad_token_id=0),
        "accelerated": lambda _: twin.generate(torch.tensor([PROMPT]), **options, pad_token_id=0),
        "engine": lambda _: engine.generate(PROMPT, max_new_tokens=tokens, ignore_eos=True),
        "FFNs": _ffns(model),
        "accelerated FFNs": _ffns(twin),
        "probe": Probe(),
    }
    timings = interleave(timed, rounds, warm_up=1, progress=stage(progress, "timing"))
    timings |= {name: Timing(timings[name].us / tokens) for name in TITLES}
    labels = {
        "shape": shape,
        "synthetic": knobs.as_dict(),
        "layers": config.layers,
        "weights": weights,
        "context": tokens + len(PROMPT),
        "activation_sparsity": stats(twin)["activation_sparsity"]["mean"],
        "note": f"{config.layers} of {full.layers} layers" if config.layers < full.layers else None,
    }
    return [_row(name, timings, labels) for name in TITLES]


def check(models: dict[str, Any], expected: Tensor, weights: str) -> None:
    """Raise MachineError unless transformers models give our logits for the prompt."""
    for name, model in models.items():
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[0].float()
        error = float((logits - expected).norm() / expected.norm().clamp_min(1e-30))
        if not error <= BOUND[weights]:
            raise MachineError(
                f"bench: {name} gives other logits than the engine (relative error {error:.1e}, "
                f"{BOUND[weights]:.0e} is rounding); nothing was timed"
            )


def _sharing(model: Any) -> Any:
    """A copy that has its own down projections and shares everything else."""
    shared = {id(p): p for name, p in model.named_parameters() if not name.endswith("down_proj.weight")}
    return copy.deepcopy(model, shared)


def _ffns(model: Any) -> Callable[[int], object]:
    """All FFNs one after the other, so that each pass reads every layer's weights from memory."""
    x = torch.randn(1, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.dtype)

    @torch.no_grad()
    def call(_: int) -> None:
        for layer in model.model.layers:
            layer.mlp(x)

    return call


def _row(name: str, timings: dict[str, Timing], labels: dict[str, Any]) -> Row:
    timing, dense = timings[name], timings["transformers"].median
    keys: Row = {}
    if name == "accelerated":
        ffns = timings["FFNs"].median
        limit = dense / (dense - ffns + timings["accelerated FFNs"].median)
        keys["quality"] = {
            "ffn_share": round(ffns / dense, 4),
            "amdahl_limit": round(limit, 3),
            "fraction_of_limit": round(dense / timing.median / limit, 3),
        }
    return make_row(
        subject="generate",
        part=name,
        mode=TITLES[name],
        tokens_per_s=round(1e6 / timing.median, 2),
        tpot_ms=round(timing.median / 1e3, 3),
        bandwidth_gb_s=round(bandwidth(timings["probe"]) / 1e9, 2),
        **measured(timings, name, "transformers", UNPATCHED),
        **keys,
        **labels,
    )
