"""A Predictor: what guesses, layer by layer, which neurons of a model will be active before its gate is read.

    low_rank       score = second . act(first . input)     act: identity, or relu (Liu et al., "Deja Vu", 2023)
    low_bit_gate   score = gate . x, the gate in int4
    sign_bits      score = how many of the signs of gate and x agree, less how many differ (SparseInfer, 2024)

A neuron is predicted where `not score + offset < 0`, so NaN is. What the two last ones scan is made from the model's
own gate when it is loaded. A file is safetensors; it names the model that it belongs to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from prosparse.kernels.weight import Weight

from ..errors import UserError
from .header import read_header
from .whole_files import write_whole

KINDS = ("low_rank", "low_bit_gate", "sign_bits")
SCHEMA_VERSION = "1"
REMAKE = "make it again with `prosparse predictor build`"


@dataclass(frozen=True, eq=False)
class LayerPredictor:
    """The predictor of one layer.

    Args:
        kind: one of `KINDS`.
        offset: added to the score, [neurons] float32; infinity predicts a neuron always, minus infinity never.
        first: of low_rank, [rank, hidden].
        second: of low_rank, [neurons, rank].
        relu: of low_rank, whether there is a ReLU between the two.
        un_normed: of low_rank, whether its input is the residual before the FFN's norm, as PowerInfer's are.

    Raises:
        UserError: an unknown kind, parts that do not belong to it, sizes that do not fit, or NaN.
    """

    kind: str
    offset: Tensor
    first: Weight | None = None
    second: Weight | None = None
    relu: bool = False
    un_normed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"predictor: kind is {self.kind!r}; supported are {', '.join(KINDS)}")
        if self.offset.dim() != 1 or self.offset.dtype != torch.float32 or bool(self.offset.isnan().any()):
            raise UserError(
                f"predictor: offset must be [neurons] float32 without NaN, got {list(self.offset.shape)} "
                f"{self.offset.dtype}{' with NaN' if bool(self.offset.isnan().any()) else ''}; {REMAKE}"
            )
        first, second = self.first, self.second
        if self.kind != "low_rank":
            if first is not None or second is not None or self.relu or self.un_normed:
                raise UserError(f"predictor: {self.kind} is made from the gate and takes no matrices; {REMAKE}")
            return
        if first is None or second is None or first.shape[0] != second.shape[1]:
            shapes = [None if part is None else list(part.shape) for part in (first, second)]
            raise UserError(
                f"predictor: low_rank needs first [rank, hidden] and second [neurons, rank], got {shapes}; {REMAKE}"
            )
        if second.shape[0] != self.offset.shape[0]:
            raise UserError(
                f"predictor: second has {second.shape[0]} neurons but offset {self.offset.shape[0]}; {REMAKE}"
            )
        for name, part in (("first", first), ("second", second)):
            if not bool(part.values().isfinite().all()):
                raise UserError(f"predictor: {name} holds NaN or infinity; {REMAKE}")

    @property
    def rank(self) -> int:
        """Of low_rank; 0 for the others."""
        return 0 if self.first is None else self.first.shape[0]

    def in_order(self, order: Tensor) -> LayerPredictor:
        """The same over neurons in another order, [neurons] int64: which of these is in each place."""
        second = None if self.second is None else Weight(self.second.codes[order], self.second.packed_columns)
        return replace(self, offset=self.offset[order], second=second)


@dataclass(frozen=True, eq=False)
class Predictor:
    """The predictors of a model.

    Args:
        layers: one per layer; None where the gate itself selects.
        model: fingerprint of the architecture.
        content: `content_key` of the weights.
        about: how it was made and what it reached: plain data for JSON.
    """

    layers: tuple[LayerPredictor | None, ...]
    model: str
    content: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of all layers that have one, or "mixed"; "none" where no layer has."""
        kinds = {layer.kind for layer in self.layers if layer is not None}
        return "none" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"

    def check_fits(self, model: str, content: str, layers: int, neurons: int, hidden: int) -> None:
        """Raise UserError unless the predictor was made for this model."""
        if len(self.layers) != layers:
            raise UserError(f"predictor: has {len(self.layers)} layers, the model {layers}; {REMAKE}")
        for number, layer in enumerate(self.layers):
            if layer is None:
                continue
            if (own := layer.offset.shape[0]) != neurons:
                raise UserError(f"predictor: layer {number} is for {own} neurons, the model has {neurons}; {REMAKE}")
            if layer.first is not None and layer.first.shape[1] != hidden:
                raise UserError(
                    f"predictor: layer {number} reads {layer.first.shape[1]} numbers, hidden is {hidden}; {REMAKE}"
                )
        for what, made, other in (("model", self.model, model), ("weights", self.content, content)):
            if made != other:
                raise UserError(f"predictor: made for {what} {made}, but this model's are {other}; {REMAKE}")

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all. Raises MachineError where that fails."""
        tensors: dict[str, Tensor] = {}
        layers: list[dict[str, Any] | None] = []
        for number, layer in enumerate(self.layers):
            if layer is None:
                layers.append(None)
                continue
            tensors[f"{number}.offset"] = layer.offset.clone()
            columns: dict[str, int | None] = {}
            for name, part in (("first", layer.first), ("second", layer.second)):
                if part is not None:
                    tensors[f"{number}.{name}"] = part.codes.clone(memory_format=torch.contiguous_format)
                    columns[name] = part.packed_columns
            layers.append(
                {"kind": layer.kind, "relu": layer.relu, "un_normed": layer.un_normed, "packed_columns": columns}
            )
        metadata = {
            "format": "prosparse.predictor",
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "content": self.content,
            "layers": json.dumps(layers),
            "about": json.dumps(self.about),
        }
        write_whole({Path(path): save(tensors, metadata)})

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read a predictor.

        Raises:
            MissingFileError: no such file.
            UserError: it is damaged, no predictor, of another schema version, or holds NaN.
        """
        path = Path(path)
        read_header(path)
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            if found.get("format") != "prosparse.predictor":
                raise UserError(f"{path}: is no predictor; {REMAKE}")
            if found.get("schema_version") != SCHEMA_VERSION:
                raise UserError(
                    f"{path}: schema_version is {found.get('schema_version')!r}, expected {SCHEMA_VERSION!r}; {REMAKE}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        try:
            described = json.loads(found["layers"])
            layers = tuple(_layer(number, entry, tensors) for number, entry in enumerate(described))
            return cls(layers, found["model"], found["content"], json.loads(found["about"]))
        except UserError as fault:
            raise UserError(f"{path}: {fault}") from fault
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as fault:
            raise UserError(f"{path}: not a whole predictor ({type(fault).__name__}: {fault}); {REMAKE}") from fault


def _layer(number: int, entry: dict[str, Any] | None, tensors: dict[str, Tensor]) -> LayerPredictor | None:
    if entry is None:
        return None
    columns = entry["packed_columns"]
    parts = {
        name: Weight(tensors[f"{number}.{name}"], columns[name])
        for name in ("first", "second")
        if f"{number}.{name}" in tensors
    }
    return LayerPredictor(
        entry["kind"],
        tensors[f"{number}.offset"],
        relu=bool(entry["relu"]),
        un_normed=bool(entry["un_normed"]),
        **parts,
    )
