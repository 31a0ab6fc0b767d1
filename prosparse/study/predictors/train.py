"""`train`: a predictor per layer from recorded activations, with what it has done so far kept in a folder.

    for each group of layers that fits on the disk: record -> for each layer: train at rank 32, 64, .. -> forget

With rank "auto" a rank is doubled while that makes a token read fewer bytes of predictor and gate. A finished layer is
a file of its own, so a run that was killed goes on with the next one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine import Engine
from ...errors import UserError
from ...sparsity.selectors import Selector
from ...weights.predictor import LayerPredictor, Predictor
from ...weights.whole_files import write_whole
from ..measure.engine_subject import EngineSubject
from ..watch import AnyFFN, open_ffns
from .build import LEAST_GAIN, RECALL, check_options, check_targets
from .calibration import Calibration, Progress
from .low_rank import guesses, ranks_to_try
from .mlp import Net, Recipe, fill_curve, start, train_layer
from .record import Rows, bytes_per_token, record

TOKENS = 200_000
DISK = 8 << 30  # bytes
CHECKED = 8  # every so many-th window is to choose by, the others are to train on
RANKS = (32, 64, 128, 256, 512, 1024)
SETTINGS = "settings.json"


def train(
    engine: Engine,
    work: str | Path,
    *,
    rank: int | str = "auto",
    target_recall: float | None = None,
    text: str | Path | None = None,
    tokens: int = TOKENS,
    weights: str = "auto",
    hidden_act: str | None = None,
    powerinfer: bool = False,
    within: float = 1.0,
    epochs: int = 20,
    disk: int = DISK,
    seed: int = 0,
    progress: Progress | None = None,
) -> Predictor:
    """Train a predictor.

    Args:
        engine: the model, in the weight format that it will run in.
        work: folder for recordings and finished layers; a run that finds its own goes on there.
        rank: or "auto": per layer, what is expected to read the fewest bytes.
        target_recall: per layer, on windows that were not trained on; None is 0.99.
        text: a UTF-8 file; None is the packaged calibration excerpt.
        tokens: of it, about.
        weights: format of the matrices; "auto" is int8 for the first and int4 for the second.
        hidden_act: between the matrices, "relu" or "none"; None is "none" but for `powerinfer`, which needs "relu".
        powerinfer: no offsets and a predictor in every layer, so that `export` can write it for PowerInfer.
        within: a layer that predicts more than this share of its neurons beyond the active ones stays exact.
        epochs: at most.
        disk: bytes that recordings may take.
        seed: of the order of rows.
        progress: called with (what, done, total).

    Raises:
        UserError: wrong options or text, or a folder with another run's work.
        MachineError: the disk is full.
    """
    check_options(engine, "low_rank", rank, weights)
    check_targets(target_recall, None, within)
    if hidden_act is None:
        hidden_act = "relu" if powerinfer else "none"
    if hidden_act not in ("relu", "none") or (powerinfer and hidden_act == "none"):
        raise UserError(f"predictor: hidden_act must be relu, or none without powerinfer, got {hidden_act!r}")
    recall = RECALL["low_rank"] if target_recall is None else target_recall
    calibration = Calibration.of(engine, text, tokens)
    windows = torch.stack([calibration.fit[: len(calibration.check)], calibration.check], 1).flatten(0, 1)
    config, facts = engine.config, EngineSubject(engine).facts
    settings = {
        "model": facts.fingerprint, "content": facts.content, "format": engine.weights, "rank": rank, "recall": recall,
        "text": calibration.text, "windows": list(windows.shape), "weights": weights, "hidden_act": hidden_act,
        "powerinfer": powerinfer, "within": within, "epochs": epochs, "seed": seed,
    }  # fmt: skip
    work = Path(work)
    _continue(work, settings)
    recipe = Recipe(recall, hidden_act == "relu", not powerinfer, epochs, seed=seed)
    size = bytes_per_token(config.hidden, config.neurons) * windows.numel()
    if size > disk:
        raise UserError(
            f"predictor: recording one layer takes {size / 2**30:.1f} GiB, more than --disk {disk / 2**30:.1f}; raise "
            "it or take fewer --tokens"
        )
    trainer = _Trainer(engine, windows, recipe, rank, weights, within, progress)
    missing = [layer for layer in range(config.layers) if not _file(work, layer).exists()]
    for start_at in range(0, len(missing), disk // size):
        group = missing[start_at : start_at + disk // size]
        recorded = record(engine, windows, group, work / "rows", progress)
        for layer in group:
            own, about = trainer.layer(layer, recorded[layer])
            Predictor((own,), facts.fingerprint, facts.content, about).save(_file(work, layer))
        recorded.clear()
        shutil.rmtree(work / "rows")
    finished = [Predictor.load(_file(work, layer)) for layer in range(config.layers)]
    about = {"made_by": "train", "kind": "low_rank", "tokens": windows.numel(), "target_recall": recall}
    rows = [own.about for own in finished]
    about |= {name: settings[name] for name in ("text", "hidden_act", "powerinfer", "seed")} | {"layers": rows}
    return Predictor(tuple(own.layers[0] for own in finished), facts.fingerprint, facts.content, about)


class _Trainer:
    """Trains layer after layer."""

    def __init__(
        self, engine: Engine, windows: Tensor, recipe: Recipe, rank: int | str, weights: str, within: float,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.ffns, self.threshold = open_ffns(engine), engine.config.activation.threshold
        self.recipe, self.weights, self.within, self.progress = recipe, weights, within, progress
        self.ranks: Sequence[int] = ranks_to_try(rank, engine.config.hidden, engine.config.neurons)
        if rank == "auto":
            self.ranks = tuple(own for own in RANKS if own <= max(self.ranks)) or self.ranks
        count, length = windows.shape
        of_window = torch.arange(count).repeat_interleave(length)
        chosen_by = of_window % min(CHECKED, count) == 0
        self.check, self.fit = torch.where(chosen_by)[0], torch.where(~chosen_by)[0]

    def layer(self, number: int, rows: Rows) -> tuple[LayerPredictor | None, dict[str, Any]]:
        """The predictor of a layer, None where it does not pay, and what is to be said about it."""
        ffn = self.ffns[number]
        best: tuple[float, LayerPredictor, dict[str, Any]] | None = None
        for rank in self.ranks:
            net = start(ffn, rows, self.fit, rank, self.threshold, self.recipe)

            def seen(done: int, total: int, rank: int = rank) -> None:
                if self.progress is not None:
                    self.progress(f"layer {number}, rank {rank}", done, total)

            net = train_layer(net, rows, self.fit, self.check, _scale(ffn), self.recipe, seen)
            found = self._finished(net, rows, ffn)
            if best is not None and found[0] >= best[0]:
                break
            best = found
        assert best is not None
        share, own, about = best
        excess = about["activation_sparsity"] - about["predicted_sparsity"]
        used = not self.recipe.bias or (share <= 1 - LEAST_GAIN and excess <= self.within)
        return own if used else None, {"used": used, **about}

    def _finished(self, net: Net, rows: Rows, ffn: AnyFFN) -> tuple[float, LayerPredictor, dict[str, Any]]:
        """Share of the gate's bytes, the predictor with its offsets, and its numbers; as it is stored."""
        stored = next(guesses(net.first, net.second, [len(net.first)], self.weights, net.relu))
        assert stored.first is not None and stored.second is not None
        net = Net(stored.first.values(), stored.second.values(), net.bias, net.relu, net.constant)
        fill_curve(net, rows, self.check, _scale(ffn))
        margin = net.curve.margin(self.recipe.recall)
        second, offset = net.with_margin(margin)
        if self.recipe.bias:
            own = LayerPredictor("low_rank", offset.cpu(), stored.first, stored.second, stored.relu)
        else:
            again = next(guesses(net.first, second, [len(net.first)], self.weights, net.relu))
            own = LayerPredictor("low_rank", offset.cpu(), stored.first, again.second, stored.relu)
        share = Selector(own, ffn.gate).nbytes / ffn.gate.nbytes + net.curve.predicted(margin)
        about = {
            "kind": "low_rank",
            "rank": own.rank,
            "recall": net.curve.recall(margin),
            "predicted_sparsity": 1 - net.curve.predicted(margin),
            "activation_sparsity": 1 - net.curve.active_share(),
            "bytes_of_gate": share,
        }
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in about.items()}
        return share, own, rounded


def _scale(ffn: AnyFFN) -> Tensor:
    return ffn.down.values().norm(dim=1)


def _file(work: Path, layer: int) -> Path:
    return work / f"layer_{layer}.safetensors"


def _continue(work: Path, settings: dict[str, Any]) -> None:
    """Note what is done in this folder, or find that it is the same as before."""
    path = work / SETTINGS
    if not path.exists():
        if work.exists() and any(work.iterdir()):
            raise UserError(f"{work}: is not empty and holds no training; choose another folder for the work")
        write_whole({path: json.dumps(settings, indent=1).encode()})
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = {}
    if found != settings:
        changed = sorted(name for name in settings if not isinstance(found, dict) or found.get(name) != settings[name])
        raise UserError(
            f"{work}: holds a training with another {', '.join(changed) or 'setting'}; remove it, or choose another "
            "folder"
        )
