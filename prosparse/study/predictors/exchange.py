"""`import_powerinfer` and `export_powerinfer`: their folders to our files and back, with a check of what was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine import Engine
from ...errors import UserError
from ...sparsity import PlainFFN
from ...weights.powerinfer import read_folder, write_folder
from ...weights.predictor import LayerPredictor, Predictor
from ..measure.engine_subject import EngineSubject
from ..watch import open_ffns
from .calibration import Calibration, Progress, read
from .guess import Guess

TOKENS = 4096  # of the calibration text, to see whether a predictor is of this model
LEAST_RECALL = 0.5  # trained predictors find more than nine in ten; another input or activation finds as chance does
LEAST_LIFT = 1.2  # recall over predicted share: chance has 1


def import_powerinfer(
    engine: Engine,
    folder: str | Path,
    *,
    input: str = "residual",
    hidden_act: str = "relu",
    weights: str = "auto",
    text: str | Path | None = None,
    tokens: int = TOKENS,
    force: bool = False,
    progress: Progress | None = None,
) -> Predictor:
    """Take over a folder of PowerInfer's predictors, and find out on calibration text whether they are this model's.

    Args:
        engine: the model.
        folder: with model_{i}.pt, or PowerInfer's GGUF file.
        input: what they read: "residual", before the FFN's norm, or "normed".
        hidden_act: between their matrices: "relu", or "none" as in Deja Vu's.
        weights: format to hold them in; "auto" is as they are.
        text, tokens: to measure recall on, see `build`.
        force: take them whatever their recall is.
        progress: called with (what, done, total).

    Raises:
        UserError: files that do not fit the model, or a recall that says that something is wrong.
    """
    config = engine.config
    sizes = {"neurons": config.neurons, "hidden": config.hidden, "layers": config.layers}
    layers = read_folder(folder, **sizes, input=input, hidden_act=hidden_act, fmt=weights)
    rows = measure_recall(engine, layers, text, tokens, progress)
    recall = sum(row["recall"] for row in rows) / len(rows)
    share = sum(1 - row["predicted_sparsity"] for row in rows) / len(rows)
    if (recall < LEAST_RECALL or recall < LEAST_LIFT * share) and not force:
        other_input, other_act = (
            "normed" if input == "residual" else "residual",
            "none" if hidden_act == "relu" else "relu",
        )
        raise UserError(
            f"{folder}: finds {recall:.1%} of the active neurons by naming {share:.1%} of all, so it is hardly this "
            f"model's; try --input {other_input}, --hidden-act {other_act} (Deja Vu's have none), or --force"
        )
    facts = EngineSubject(engine).facts
    about = {
        "made_by": "import",
        "from": Path(folder).name,
        "input": input,
        "hidden_act": hidden_act,
        "kind": "low_rank",
    }
    return Predictor(layers, facts.fingerprint, facts.content, about | {"layers": rows})


def export_powerinfer(engine: Engine, predictor: Predictor, folder: str | Path) -> None:
    """Write a predictor of this model as PowerInfer reads it.

    Raises:
        UserError: a predictor of another model, or one that the format cannot express.
        MachineError: the folder cannot be written.
    """
    facts = EngineSubject(engine).facts
    predictor.check_fits(facts.fingerprint, facts.content, facts.layers, facts.neurons, facts.hidden)
    norms = []
    for own, ffn in zip(predictor.layers, open_ffns(engine), strict=True):
        if isinstance(ffn, PlainFFN) and own is not None and not own.un_normed:
            raise UserError(
                "predictor: this model's norm has a mean and a bias, so a predictor of the normed input cannot be "
                "written as one of the residual, which PowerInfer needs; take a gated model"
            )
        norms.append(ffn.norm)
    write_folder(folder, predictor, norms)


def measure_recall(
    engine: Engine,
    layers: tuple[LayerPredictor, ...],
    text: str | Path | None = None,
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """recall, predicted_sparsity and activation_sparsity of each layer on calibration text."""
    ffns = open_ffns(engine)
    guesses = [Guess.of(own, ffn.gate) for own, ffn in zip(layers, ffns, strict=True)]
    counts = torch.zeros(len(layers), 4, dtype=torch.float64)

    def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> None:
        named, active = ~(guesses[layer].selector.scores(residual, x) < 0), h != 0
        sums = [int((named & active).sum()), int(active.sum()), int(named.sum()), h.numel()]
        counts[layer] += torch.tensor(sums, dtype=torch.float64)

    read(engine, Calibration.of(engine, text, tokens).check, view, progress, "recall")
    return [
        {
            "used": True,
            "kind": "low_rank",
            "rank": own.rank,
            "recall": round(both / active, 6) if active else 1.0,
            "predicted_sparsity": round(1 - named / everything, 6),
            "activation_sparsity": round(1 - active / everything, 6),
        }
        for own, (both, active, named, everything) in zip(layers, counts.tolist(), strict=True)
    ]
