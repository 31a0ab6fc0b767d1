"""Bad inputs: folders of `prosparse convert --weights int8`, and weight formats that are asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from bad_inputs.case import Case, Change, content, generate, resized, tensors

from prosparse.weights import convert
from prosparse.weights.formats import KEY

GATE, DOWN = "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"


def _converted(then: Change | None = None, fmt: str = "int8") -> Change:
    """Put the converted model in the folder's place, then change that."""

    def change(folder: Path) -> None:
        made = convert(folder, folder.with_name("made"), fmt)
        shutil.rmtree(folder)
        made.rename(folder)
        if then is not None:
            then(folder)

    return change


def _says(**keys: Any) -> Change:
    """Change keys of prosparse_quantization; without any, take it away."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        if keys:
            data[KEY] |= keys
        else:
            del data[KEY]
        (folder / "config.json").write_text(json.dumps(data))

    return change


def _no_number(found: dict[str, torch.Tensor]) -> None:
    found[DOWN].view(torch.uint8)[3, 128:130] = 255  # behind the 128 codes of its only group


def _calibrate(fmt: str, *text: str) -> tuple[str, ...]:
    return ("convert", "MODEL", "-o", "MODEL-x", "--weights", fmt, "--calibrate", *text)


CONVERTED = {
    "c1": [
        Case("a folder converted to int8", _converted(), status=0, shows="ab"),
        Case("a folder converted to int4, and its format asked for", _converted(fmt="int4"), status=0, shows="ab",
             command=generate("--weights", "int4", "--max-new-tokens", "2")),
    ],
    "c2": [Case("a version of a later prosparse", _converted(_says(version=2)))],
    "c3": [
        Case("packed weights that config.json does not mention", _converted(_says())),
        Case("packed weights in another format than config.json says", _converted(_says(weights="int4"))),
        Case("a packed format that is not known", _converted(_says(weights="int2"))),
    ],
    "c4": [
        Case("packed rows that are too short", _converted(tensors(lambda f: f.update({GATE: f[GATE][:, :-16]})))),
        Case("a packed matrix with a row missing", _converted(tensors(lambda f: f.update({DOWN: f[DOWN][1:]})))),
        Case("plain weights where packed ones must be",
             _converted(tensors(lambda f: f.update({GATE: f[GATE].float()})))),
    ],
    "c5": [Case("a scale that is no number", _converted(tensors(_no_number)))],
    "c6": [Case("a converted folder cut off", _converted(resized(-1000)))],
    "c7": [
        Case("a converted folder in another format", _converted(), generate("--weights", "bf16")),
        Case("another lm_head than the converted one", _converted(), generate("--lm-head", "int4")),
        Case("a converted folder compared with itself", _converted(), ("perplexity", "MODEL")),
        Case("a converted folder converted again", _converted(),
             ("convert", "MODEL", "-o", "MODEL-x", "--weights", "int4")),
    ],
    "c8": [
        Case("a weight format that is not known", command=generate("--weights", "int3")),
        Case("an lm_head format that is not known", command=generate("--lm-head", "q4")),
        Case("a weight format that convert does not know",
             command=("convert", "MODEL", "-o", "MODEL-x", "--weights", "q8")),
        Case("infinity among weights to be quantised", tensors(lambda f: f[DOWN].view(-1)[:2].fill_(float("inf"))),
             generate("--weights", "int4")),
    ],
    "c9": [
        Case("a calibration text that is too short", content("short.txt", "Too little.\n" * 50),
             _calibrate("int4", "MODEL/short.txt")),
        Case("no such calibration text", command=_calibrate("int4", "MODEL/none.txt")),
        Case("calibration for a format that is not rounded to", command=_calibrate("bf16")),
        Case("calibration of a folder converted to int8", _converted(), _calibrate("int8")),
        Case("too few calibration tokens", command=(*_calibrate("int4"), "--calibration-tokens", "10")),
        Case("calibration tokens without calibration",
             command=("convert", "MODEL", "-o", "MODEL-x", "--weights", "int4", "--calibration-tokens", "2048")),
    ],
}  # fmt: skip
