"""A text on its way through a model of which one layer at a time is in memory.

Layers compute in float32 with the weights as stored, so where the walk gets to does not depend on how earlier layers
were rounded, and a conversion that goes on does not need what it wrote. Walking on through rounded layers instead, so
that later ones make up for earlier ones, is no better on the embedded model.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prosparse.kernels.weight import Weight

from ...config import ModelConfig
from ...engine.load import assemble
from ...errors import UnsupportedError
from ...model.attention import Step
from ...model.cache import KVCache
from ...model.decoder import Decoder
from ...placement import choose
from ...sparsity.ffn import GatedFFN
from ...weights import ModelWeights
from ...weights.convert import Source
from ...weights.load import load_layer
from ...weights.names import TABLES


class Moments:
    """Sums of x x^T over tokens: `sums` is {name: [n, n] float32}."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor) -> None:
        """x is [tokens, n] float32."""
        if name not in self.sums:
            self.sums[name] = torch.zeros(x.shape[1], x.shape[1])
        self.sums[name].addmm_(x.T, x)


class Walk:
    """The residual of some windows of tokens, carried from layer to layer.

    Args:
        source: of `config`'s model, in float formats.
        config: sizes and constants.
        windows: token ids, [windows, length] int64.

    Attributes:
        passed: layers that the residual has passed.
    """

    def __init__(self, source: Source, config: ModelConfig, windows: Tensor) -> None:
        self.source, self.config, self.passed = source, config, 0
        names, self._one = TABLES[config.family], replace(config, layers=1)
        self._table = Weight(source.read(names.embed))
        self._final_norm = source.read(names.final_norm).float()
        self._cache = KVCache(self._one, 1, windows.shape[1], torch.float32, torch.device("cpu"))
        decoder = self._decoder()
        self._step = Step.at((0,), (0,), windows.shape[1], decoder.rope)
        self._residuals = [decoder.begin(window) for window in windows]

    def advance(self, watch: bool) -> Moments:
        """Pass the next layer; if it is watched, returns the moments of what "qkv", "o", "gate_up" and "down" read."""
        moments = Moments()

        def see(name: str, x: Tensor) -> Tensor:
            if watch:
                moments.add(name, x)
            return x

        def view(before: Tensor, x: Tensor, value: Tensor, h: Tensor) -> Tensor:
            see("gate_up", x)
            return see("down", h)

        attention, ffn = self._decoder().blocks[0]
        if not isinstance(ffn, GatedFFN):
            raise UnsupportedError(f"convert: {type(ffn).__name__} cannot be calibrated; leave --calibrate out")
        for i, residual in enumerate(self._residuals):
            normed = see("qkv", attention.normed(residual))
            attended = see("o", attention.attended(normed, self._step, self._cache))
            self._residuals[i] = ffn.prefill(attention.added(residual, attended), view)
        self.passed += 1
        return moments

    def finish(self) -> Moments:
        """The moments of what "lm_head" reads, once all layers are passed."""
        moments, decoder = Moments(), self._decoder()
        for residual in self._residuals:
            moments.add("lm_head", decoder.finish(residual))
        return moments

    def _decoder(self) -> Decoder:
        """A decoder of one layer: the next, or after the last the last again."""
        layer = load_layer(self.source, self.config, min(self.passed, self.config.layers - 1), "fp32")
        weights = ModelWeights(self._table, self._table, self._final_norm, [layer])
        return assemble(self._one, weights, choose(self._one, "dense"), self._cache.context)
