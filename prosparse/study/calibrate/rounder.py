"""Rounds the matrices of a model one after the other, walking the calibration text through it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...config import ModelConfig
from ...errors import MachineError
from ...weights.convert import Source
from ...weights.finite import check_finite
from ...weights.load import has_own_lm_head
from ...weights.tables import names_of
from .rounding import DAMPING, TIED_DAMPING, Factors, round_columns, round_rows
from .walk import Moments, Walk


class Rounder:
    """What `weights.convert` asks for codes. Fastest, and with memory for one layer, in the order of `ordered`.

    Args:
        source: of `config`'s model, in float formats.
        config: sizes and constants.
        windows: the calibration text, [windows, length] int64.
        about: names it.

    Attributes:
        about: how matrices are rounded, for config.json.
    """

    def __init__(self, source: Source, config: ModelConfig, windows: Tensor, about: dict[str, Any]) -> None:
        self.source, self.config, self.windows = source, config, windows
        self.about = {"method": "error feedback", **about, "damping": DAMPING}
        names = names_of(config)
        layer = names.layer
        self._names = names
        self._input_of = {
            **dict.fromkeys((layer.q, layer.k, layer.v), "qkv"),
            layer.o: "o",
            **dict.fromkeys((layer.gate, layer.up), "gate_up"),
            layer.down: "down",
        }
        self._inputs = list(dict.fromkeys(self._input_of.values()))
        self._tied = config.tied_embeddings and not has_own_lm_head(source, names)
        self._head = names.embed if self._tied else names.lm_head
        self._walk: Walk | None = None
        self._moments = Moments()
        self._factored: tuple[tuple[float, str], Factors, Tensor] | None = None

    def ordered(self, names: list[str]) -> list[str]:
        """Layer by layer, matrices of one input together, lm_head and its like last."""

        def turn(name: str) -> tuple[float, int]:
            layer, wanted = self._place(name)
            return layer, self._inputs.index(wanted) if wanted in self._inputs else -1

        return sorted(names, key=turn)

    def packed(self, name: str, fmt: str) -> Tensor | None:
        """Codes of a matrix, packed; None for an embedding that is not lm_head, which is multiplied with nothing."""
        layer, wanted = self._place(name)
        if wanted is None:
            return None
        matrix = self.source.read(name)
        check_finite(self.source, name, matrix)
        factors, order = self._factors(layer, wanted, name)
        if wanted == "down":
            return round_rows(matrix.T, factors, order, fmt)
        return round_columns(matrix, factors, fmt)

    def _place(self, name: str) -> tuple[float, str | None]:
        """The layer that a tensor belongs to, infinity after all layers, and the input it is multiplied with."""
        found = self._names.layer_number.match(name)
        if found is None:
            is_head = name == self._head
            return (
                (-1, None) if name == self._names.embed and not is_head else (math.inf, "lm_head" if is_head else None)
            )
        number = int(found[1])
        return number, next((x for pattern, x in self._input_of.items() if pattern.format(number, 0) == name), None)

    def _factors(self, layer: float, wanted: str, name: str) -> tuple[Factors, Tensor]:
        """Factors of an input's moments, and the order of its neurons, those that matter most first."""
        if self._factored is None or self._factored[0] != (layer, wanted):
            self._factored = None  # the old ones go before new ones come
            self._reach(layer)
            moments = self._moments.sums.pop(wanted)
            if not bool(torch.isfinite(moments).all()):
                raise MachineError(
                    f"convert: what {name} is multiplied with is not finite on the calibration text; calibrate on "
                    "another text, or leave --calibrate out"
                )
            order = torch.arange(len(moments))
            if wanted == "down":
                order = moments.diagonal().argsort(descending=True, stable=True)
                moments = moments[order][:, order]
            damping = TIED_DAMPING if wanted == "lm_head" and self._tied else DAMPING
            self._factored = (layer, wanted), Factors.of(moments, damping), order
        return self._factored[1], self._factored[2]

    def _reach(self, layer: float) -> None:
        """Have the moments of a layer, or of what comes after all of them."""
        walk = self._walk = self._walk or Walk(self.source, self.config, self.windows)
        if layer < walk.passed:
            return
        self._moments = Moments()
        while walk.passed < min(layer, self.config.layers):
            walk.advance(watch=False)  # a layer that an earlier conversion has finished
        self._moments = walk.advance(watch=True) if layer < self.config.layers else walk.finish()
