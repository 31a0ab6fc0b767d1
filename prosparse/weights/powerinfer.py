"""PowerInfer's predictors: a folder with model_0.pt, model_1.pt, .. and perhaps config.json; or inside its GGUF files.

    active where fc2 . relu(fc1 . residual) >= sparse_threshold      fc1 [rank, hidden], fc2 [neurons, rank], no bias

The input is the residual before the FFN's norm, x = residual / rms * norm. Without bias and threshold the score is in
proportion to its input, and only its sign counts, so fc1 over x is fc1 * norm over the residual: the same set.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.weight import Weight, in_format

from ..config.fields import parse_json_object
from ..errors import CheckpointError, MissingFileError, UserError
from .gguf.file import read_gguf
from .gguf.powerinfer import predictor_threshold, read_predictors
from .pickled import unpickle
from .predictor import LayerPredictor, Predictor
from .whole_files import write_whole

FILE = re.compile(r"model_(\d{1,9})\.pt")
INPUTS, HIDDEN_ACTS = ("residual", "normed"), ("relu", "none")
CONFIG, THRESHOLD = "config.json", "sparse_threshold"


def read_folder(
    folder: str | Path, *, neurons: int, hidden: int, layers: int, input: str = "residual", hidden_act: str = "relu",
    fmt: str = "auto",
) -> tuple[LayerPredictor, ...]:  # fmt: skip
    """The predictors of a folder, layers in the order of their numbers.

    Args:
        folder: with model_{i}.pt, read without running anything that is in them; or a GGUF file that holds predictors,
            whose input and activation are PowerInfer's.
        neurons, hidden, layers: of the model.
        input: what they were trained on, one of `INPUTS`.
        hidden_act: between the two matrices, one of `HIDDEN_ACTS`.
        fmt: to hold them in; "auto" is as they are stored.

    Raises:
        MissingFileError: no such folder, or a layer is missing.
        CheckpointError: a file that is none of these, or does not fit the model, or holds NaN.
        UserError: an unknown option.
    """
    if input not in INPUTS or hidden_act not in HIDDEN_ACTS:
        raise UserError(
            f"predictor: input and hidden_act are {input!r} and {hidden_act!r}; supported are {', '.join(INPUTS)}, and "
            f"{', '.join(HIDDEN_ACTS)}"
        )
    folder = Path(folder)
    if folder.suffix == ".gguf":
        return _from_gguf(folder, neurons, hidden, layers, fmt)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with model_0.pt, model_1.pt, ..")
    found = {int(match[1]): path for path in folder.iterdir() if (match := FILE.fullmatch(path.name))}
    if not found:
        raise MissingFileError(f"{folder}: holds no model_0.pt, model_1.pt, ..; give a folder of PowerInfer predictors")
    if sorted(found) != list(range(layers)):
        missing = next((i for i in range(layers) if i not in found), None)
        what = f"model_{missing}.pt is missing" if missing is not None else f"there are {len(found)} predictors"
        raise CheckpointError(f"{folder}: {what}, but the model has {layers} layers; get the predictors of this model")
    threshold = _threshold(folder / CONFIG)
    matrices = (_matrices(found[number], neurons, hidden) for number in range(layers))
    return tuple(_layer(*own, threshold, fmt, hidden_act == "relu", input == "residual") for own in matrices)


def write_folder(folder: str | Path, predictor: Predictor, norms: Sequence[Tensor]) -> None:
    """Write model_{i}.pt and config.json, float16, as PowerInfer reads them.

    Args:
        folder: to write to.
        predictor: low_rank in every layer, with one offset for all neurons of all layers; that must be 0 where its
            input is normed.
        norms: of each layer's FFN, [hidden].

    Raises:
        UserError: a predictor that the format cannot express.
        MachineError: the folder cannot be written.
    """
    offsets = set()
    files: dict[Path, bytes] = {}
    folder = Path(folder)
    for number, (own, norm) in enumerate(zip(predictor.layers, norms, strict=True)):
        if own is None or own.first is None or own.second is None:
            what = "has no predictor" if own is None else f"is {own.kind}"
            raise UserError(
                f"predictor: layer {number} {what}; PowerInfer needs a low_rank one in every layer: make it with "
                "`prosparse predictor train --powerinfer`"
            )
        offsets |= set(own.offset.unique().tolist())
        if len(offsets) > 1 or (not own.un_normed and offsets != {0.0}):
            raise UserError(
                f"predictor: layer {number} has offsets, for which PowerInfer's format has no place; make one without "
                "with `prosparse predictor train --powerinfer`"
            )
        first, second = own.first.values(), own.second.values()
        if not own.un_normed:
            first = first * norm.float().cpu()
        if not own.relu:  # z = relu(z) - relu(-z)
            first, second = torch.cat([first, -first]), torch.cat([second, -second], 1)
        out = io.BytesIO()
        torch.save({"fc1.weight": _half(first, number), "fc2.weight": _half(second, number)}, out)
        files[folder / f"model_{number}.pt"] = out.getvalue()
    threshold = -next(iter(offsets)) + 0.0  # no minus zero
    files[folder / CONFIG] = json.dumps({THRESHOLD: threshold}).encode()
    write_whole(files)


def _from_gguf(path: Path, neurons: int, hidden: int, layers: int, fmt: str) -> tuple[LayerPredictor, ...]:
    threshold = predictor_threshold(read_gguf(path))
    made = tuple(_layer(own.fc1, own.fc2, threshold, fmt, True, True) for own in read_predictors(path))
    if len(made) != layers or any((own.first.shape[1], own.offset.numel()) != (hidden, neurons) for own in made):  # type: ignore[union-attr]
        raise CheckpointError(
            f"{path}: holds predictors of {len(made)} layers, expected {layers} of {neurons} neurons and hidden "
            f"{hidden}; take the file of this model"
        )
    return made


def _layer(first: Tensor, second: Tensor, threshold: float, fmt: str, relu: bool, un_normed: bool) -> LayerPredictor:
    parts = {
        name: Weight(matrix.contiguous()) if fmt == "auto" else in_format(matrix.float(), fmt)
        for name, matrix in (("first", first), ("second", second))
    }
    offset = torch.full((second.shape[0],), -threshold)
    return LayerPredictor("low_rank", offset, relu=relu, un_normed=un_normed, **parts)


def _half(matrix: Tensor, layer: int) -> Tensor:
    # only the sign of the score counts, so a matrix may be scaled; its largest number then has room in float16
    half = (matrix / matrix.abs().max().clamp_min(1e-30)).half() if float(matrix.abs().max()) > 6e4 else matrix.half()
    if not bool(half.isfinite().all()):
        raise UserError(f"predictor: layer {layer} does not fit float16; make it again")
    return half


def _threshold(path: Path) -> float:
    if not path.exists():
        return 0.0
    try:
        config = parse_json_object(path.read_text(encoding="utf-8"), str(path), CheckpointError)
    except (OSError, UnicodeDecodeError) as fault:
        raise CheckpointError(f"{path}: cannot be read ({fault}); check it") from fault
    value: Any = config.get(THRESHOLD, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise CheckpointError(f"{path}: {THRESHOLD} must be a finite number, got {value!r}; PowerInfer's default is 0")
    return float(value)


def _matrices(path: Path, neurons: int, hidden: int) -> tuple[Tensor, Tensor]:
    found = unpickle(path)
    names = ("fc1.weight", "fc2.weight")
    if not isinstance(found, dict) or set(found) != set(names):
        held = ", ".join(sorted(map(str, found))[:4]) if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(f"{path}: holds {held or 'nothing'}, expected {' and '.join(names)} alone")
    for name in names:
        own = found[name]
        if not isinstance(own, Tensor) or own.layout != torch.strided or own.is_quantized or own.dim() != 2:
            raise CheckpointError(f"{path}: {name} is no dense matrix; get the predictor again")
        if own.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise CheckpointError(f"{path}: {name} is {own.dtype}, expected float32, float16 or bfloat16")
        if not bool(own.isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; get the predictor again")
    first, second = found[names[0]], found[names[1]]
    if first.shape[1] != hidden or second.shape != (neurons, first.shape[0]):
        raise CheckpointError(
            f"{path}: fc1 is {list(first.shape)} and fc2 {list(second.shape)}, expected [rank, {hidden}] and "
            f"[{neurons}, rank]; the predictor is of another model"
        )
    return first, second
