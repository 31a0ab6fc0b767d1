"""A text on its way through a model of which one layer at a time is in memory.

Layers compute in float32 with the weights as stored, so where the walk gets to does not depend on how earlier layers
were rounded, and a conversion that goes on does not need what it wrote. Walking on through rounded layers instead, so
that later ones make up for earlier ones, is no better on the packaged model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config import ModelConfig
from ...engine.load import assemble
from ...errors import UnsupportedError
from ...model.attention import Attention, Step
from ...model.cache import KVCache
from ...model.decoder import Decoder, Ends
from ...placement import choose
from ...sparsity.ffn import GatedFFN
from ...sparsity.plain import PlainFFN
from ...weights import ModelWeights
from ...weights.convert import Source
from ...weights.load import load_layer
from ..watch import WatchedFFN


class Moments:
    """Sums of x x^T over tokens: `sums` is {name: [n, n] float32}."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor) -> None:
        """x is [tokens, n] float32."""
        if name not in self.sums:
            self.sums[name] = torch.zeros(x.shape[1], x.shape[1])
        self.sums[name].addmm_(x.T, x)

    def view(self, layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> None:
        """Inputs that an FFN block shows are added up."""
        self.add("gate_up", x)
        self.add("down", h)


class WatchedAttention:
    """The prefill of an attention block, whose inputs are added up."""

    def __init__(self, attention: Attention, moments: Moments) -> None:
        self._attention, self._moments = attention, moments

    def __call__(self, residual: Tensor, step: Step, cache: KVCache, onto: Tensor | None = None) -> Tensor:
        return self._attention(residual, step, cache, onto, self._view)

    def _view(self, given: Tensor, attended: Tensor) -> None:
        self._moments.add("qkv", given)
        self._moments.add("o", attended)


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
        self._one = replace(config, layers=1, logit_scale=1.0)
        self._cache = KVCache(self._one, 1, windows.shape[1], torch.float32, torch.device("cpu"))
        weights = load_layer(source, config, 0)
        entry = self._decoder(weights, Ends(weights.positions, weights.project_in))
        self._residuals = [self._through(entry, window) for window in windows]

    def advance(self, watch: bool) -> Moments:
        """Pass the next layer; if it is watched, returns the moments of what "qkv", "o", "gate_up" and "down" read."""
        weights, moments = load_layer(self.source, self.config, self.passed), Moments()
        bare = replace(weights, positions=None, project_in=None, project_out=None, final_norm=None)
        layer = assemble(self._one, bare, choose(self._one, "dense"), self._cache.context)
        if watch:
            attention, ffn = layer.blocks[0]
            if not isinstance(ffn, GatedFFN | PlainFFN):
                raise UnsupportedError(f"convert: {type(ffn).__name__} cannot be calibrated; leave --calibrate out")
            watched: list[Any] = [(WatchedAttention(attention, moments), WatchedFFN(ffn, 0, moments.view))]
            layer.blocks = watched
        for i, residual in enumerate(self._residuals):
            self._residuals[i] = self._through(layer, residual)
        self.passed += 1
        return moments

    def finish(self) -> Moments:
        """The moments of what "lm_head" reads, once all layers are passed."""
        weights, moments = load_layer(self.source, self.config, self.config.layers - 1), Moments()
        ends = Ends(project_out=weights.project_out, final_norm_bias=weights.final_norm_bias)
        leave = self._decoder(weights, ends, weights.final_norm)
        for residual in self._residuals:
            moments.add("lm_head", self._through(leave, residual))
        return moments

    def _decoder(self, weights: ModelWeights, ends: Ends, final_norm: Tensor | None = None) -> Decoder:
        """One without blocks."""
        return Decoder(self._one, weights.embed, [], final_norm, weights.embed, self._cache.context, ends)

    def _through(self, decoder: Decoder, given: Tensor) -> Tensor:
        """What comes out of a decoder for tokens, or for residuals in place of their embeddings."""
        return decoder.prefill(given, 0, 0, self._cache)
