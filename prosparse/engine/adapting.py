"""A division that follows the text: after each prompt, neurons of the layers that two devices share change places."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from ..model.decoder import Decoder
from ..sparsity import HybridFFN
from ..sparsity.exchange import Exchange
from ..weights.neuron_profile import Profile


class Adapting:
    """Of a model. Nothing moves while more than one run is using it.

    Args:
        exchanges: of its shared layers.
        nbytes: that may move at each prompt, both ways together.
    """

    def __init__(self, exchanges: Sequence[Exchange], nbytes: int) -> None:
        self._exchanges, self._nbytes = exchanges, nbytes
        self._lock, self._runs = threading.Lock(), 0

    @classmethod
    def of(cls, decoder: Decoder, profile: Profile, nbytes: int) -> Adapting:
        """Of a decoder that is divided by a profile."""
        shared = [(layer, ffn) for layer, (_, ffn) in enumerate(decoder.blocks) if isinstance(ffn, HybridFFN)]
        return cls([Exchange(ffn, profile.frequency[layer][ffn.order]) for layer, ffn in shared], nbytes)

    def enter(self) -> None:
        """A run begins; waits while neurons are moved."""
        with self._lock:
            self._runs += 1

    def leave(self) -> None:
        """It ends."""
        with self._lock:
            self._runs -= 1

    @torch.inference_mode()
    def move(self, before: tuple[int, int] | None = None) -> tuple[int, int]:
        """Exchange what brings most, within the bytes; returns pairs of neurons and bytes, with those before."""
        pairs, nbytes = before or (0, 0)
        with self._lock:
            if self._runs > 1 or not self._exchanges:
                return pairs, nbytes
            gains = [each.gains() for each in self._exchanges]
            largest = max(each.pair_bytes for each in self._exchanges)
            # Gains of a layer descend, so the best of all layers are the first ones of each.
            layers = torch.cat([torch.full((len(own),), number) for number, own in enumerate(gains)])
            best = torch.cat(gains).argsort(descending=True, stable=True)[: self._nbytes // largest]
            taken = layers[best].long().bincount(minlength=len(gains)).tolist()
            for each, own in zip(self._exchanges, taken, strict=True):
                each.swap(own)
                pairs, nbytes = pairs + own, nbytes + own * each.pair_bytes
        return pairs, nbytes
