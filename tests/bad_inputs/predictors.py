"""Bad inputs: predictors, ours and PowerInfer's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from bad_inputs.case import Case, Change, generate
from predictors import predictor_of
from safetensors import safe_open
from safetensors.torch import save_file

from prosparse.engine import load
from prosparse.weights.predictor import LayerPredictor, Predictor

FILE, FOLDER = "p.safetensors", "powerinfer"
RUN = generate("--mode", "predicted", "--predictor", f"MODEL/{FILE}", "--max-new-tokens", "2")
IMPORT = ("predictor", "import", f"MODEL/{FOLDER}", "MODEL", "-o", "MODEL/made.safetensors")
BUILD = ("predictor", "build", "MODEL", "-o", "MODEL/made.safetensors")
KEY = "(?<=are )[0-9a-f]{16}"
HIDDEN, NEURONS, RANK = 64, 96, 4
TEXT = "MODEL/text.txt"


class _Payload:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a predictor was run')",)


def _ours(offset: float = math.inf, **parts: Any) -> Change:
    """A predictor of the model with parts that differ."""

    def change(folder: Path) -> None:
        own = predictor_of(load(folder, weights="fp32"), offset=offset)
        given = {"layers": own.layers, "model": own.model, "content": own.content} | parts
        Predictor(**given).save(folder / FILE)
        (folder / "text.txt").write_text("the quick brown fox " * 9)

    return change


def _tensor(name: str, tensor: torch.Tensor) -> Change:
    """A predictor of the model with a tensor of its file that differs."""

    def change(folder: Path) -> None:
        _ours()(folder)
        with safe_open(folder / FILE, "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in list(file.keys())}
        save_file(tensors | {name: tensor}, folder / FILE, metadata)

    return change


def _powerinfer(layers: int = 2, threshold: str = "0", **matrices: Any) -> Change:
    """A folder of PowerInfer's."""

    def change(folder: Path) -> None:
        (folder / FOLDER).mkdir()
        good = {"fc1.weight": torch.ones(RANK, HIDDEN), "fc2.weight": torch.ones(NEURONS, RANK)}
        for layer in range(layers):
            torch.save(good | {f"{name}.weight": own for name, own in matrices.items()},
                       folder / FOLDER / f"model_{layer}.pt")  # fmt: skip
        (folder / FOLDER / "config.json").write_text(f'{{"sparse_threshold": {threshold}}}')

    return change


def _random(folder: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    fc1, fc2 = torch.randn(RANK, HIDDEN, generator=rng), torch.randn(NEURONS, RANK, generator=rng)
    _powerinfer(threshold="9", fc1=fc1, fc2=fc2)(folder)
    (folder / "text.txt").write_text("the quick brown fox " * 9)


def _pickled(folder: Path) -> None:
    _powerinfer()(folder)
    torch.save(_Payload(), folder / FOLDER / "model_1.pt")


def _as_file(folder: Path) -> None:
    torch.save({"fc1.weight": torch.ones(2)}, folder / FILE)


def _wide(neurons: int) -> tuple[LayerPredictor, ...]:
    return (LayerPredictor("sign_bits", torch.zeros(neurons)),) * 2


EVAL = ("predictor", "eval", "MODEL", "--predictor", f"MODEL/{FILE}", "--held-out", TEXT, "--predictions", "20")

PREDICTORS = {
    "54": [
        Case("a predictor that would run code when it is unpickled", _pickled, IMPORT,
             library="(?<=PyTorch file: ).*(?=; prosparse never)"),
        Case("a PyTorch file where a predictor is expected", _as_file, RUN),
    ],
    "55": [
        Case("a predictor of another architecture", _ours(model="0" * 16), RUN, library=KEY),
        Case("a predictor of the same architecture with other weights", _ours(content="0" * 16), RUN, library=KEY),
        Case("predictors of PowerInfer's that find no more than chance does", _random, (*IMPORT, "--text", TEXT),
             library=r"[\d.]+(?=%)"),
        Case("a predictor in mode exact", _ours(), generate("--mode", "exact", "--predictor", f"MODEL/{FILE}")),
    ],
    "56": [
        Case("a predictor with a layer too many", _ours(layers=_wide(NEURONS) * 2), RUN),
        Case("a predictor for more neurons", _ours(layers=_wide(NEURONS + 1)), RUN),
        Case("PowerInfer's predictors with a layer missing", _powerinfer(layers=1), IMPORT),
        Case("PowerInfer's predictors with a layer too many", _powerinfer(layers=3), IMPORT),
        Case("PowerInfer's predictors of another hidden size", _powerinfer(fc1=torch.ones(RANK, 32)), IMPORT),
        Case("PowerInfer's predictors whose ranks disagree", _powerinfer(fc1=torch.ones(3, HIDDEN)), IMPORT),
        Case("a rank larger than the gate", command=(*BUILD, "--rank", "65")),
    ],
    "57": [
        Case("NaN in the offsets of a predictor", _tensor("1.offset", torch.full((NEURONS,), math.nan)), RUN),
        Case("NaN in PowerInfer's predictors", _powerinfer(fc2=torch.full((NEURONS, RANK), math.nan)), IMPORT),
    ],
    "58": [
        Case("a sparse_threshold that is no number", _powerinfer(threshold="NaN"), IMPORT),
        Case("a recall above 1", command=(*BUILD, "--target-recall", "1.5")),
        Case("a recall and a divergence at once", command=(*BUILD, "--target-recall", "0.9", "--target-kl", "0.1")),
    ],
    "59": [
        Case("a predictor whose offsets are float64", _tensor("0.offset", torch.zeros(NEURONS).double()), RUN),
        Case("PowerInfer's predictors in whole numbers", _powerinfer(fc1=torch.ones(RANK, HIDDEN).int()), IMPORT),
    ],
    "60": [
        Case("a predictor that selects nothing", _ours(offset=-math.inf), (*EVAL, "--weights", "fp32"), status=0,
             shows="names no neuron in layers 0, 1"),
        Case("a predictor that selects everything", _ours(), (*EVAL, "--weights", "fp32"), status=0,
             shows="names every neuron in layers 0, 1"),
    ],
    "61": [
        Case("a sparse tensor in PowerInfer's predictors", _powerinfer(fc1=torch.eye(RANK, HIDDEN).to_sparse()),
             IMPORT),
    ],
}  # fmt: skip
