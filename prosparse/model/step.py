"""A decode step as launches alone, from ids on the device to the ids it chose: what a CUDA graph can replay.

Nothing is decided or read on the host, and what a step takes and leaves lies in tensors that stay where they are. So a
second step may follow before the host has seen what the first one chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prosparse.kernels import triton
from prosparse.kernels.decode_layers import Glu

from .cache import KVCache
from .decoder import Decoder
from .tiers import Tier


def why_no_step(decoder: Decoder) -> str | None:
    """What keeps a decoder's steps from being launches alone, but for parts of a CPU; None where they can be."""
    if all(tier.device.type != "cuda" for tier in decoder.tiers.layers):
        return f"the model is on {decoder.tiers.layers[0].device.type}"
    return triton.why_not() or unfit(decoder)


def unfit(decoder: Decoder) -> str | None:
    """What this step does not compute of a decoder's network; None where it computes all of it."""
    has_ends = any(part is not None for part in vars(decoder.ends).values())
    if decoder.config.block != "sequential" or has_ends or decoder.final_norm is None:
        return f"{decoder.config.family} has blocks or ends that the step does not know"
    if any(attention.norm_bias is not None or attention.o_bias is not None for attention, _ in decoder.blocks):
        return f"{decoder.config.family} has biases that the step does not know"
    return None


@dataclass(frozen=True, eq=False)
class Part:
    """What a device does of a step while the host has nothing to say.

    Args:
        run: does it, always the same way with what lies in the same places.
        on_host: whether it is the host's own; a graph replays the others.
    """

    run: Callable[[], None]
    on_host: bool = False


class Launches:
    """What a step launches on one device, one new token of each sequence.

    Args:
        decoder: the network.
        cache: of the sequences.
        tier: of the layers whose launches are asked for.
        sequences: how many.
        overlap: let launches begin while those before them end, on a GPU that can; None is as `configs.OVERLAP` says.

    Attributes:
        slots, starts: [sequences] int32, place in the cache and length so far, which are read on the device.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, tier: Tier, sequences: int, overlap: bool | None = False
    ) -> None:
        # Triton need not be installed
        from prosparse.kernels.triton import argmax, configs, decode_layers, embed, gpu, linear
        from prosparse.kernels.triton.overlap import can_overlap

        assert decoder.final_norm is not None, "a step without final norm is refused by `unfit`"
        self._launch, self._embed, self._linear = decode_layers, embed.launch, linear.launch
        self._argmax = argmax.launch
        self._decoder, self._cache = decoder, cache
        wanted = configs.OVERLAP if overlap is None else overlap
        self._overlap = wanted and can_overlap(gpu.gpu_of(tier.device))
        self.slots, self.starts = (torch.zeros(sequences, dtype=torch.int32, device=tier.device) for _ in range(2))
        (keys, values), rope = cache.of_tier(tier), decoder.rope_of(tier)
        self._place = decode_layers.Place(
            keys, values, rope.cos, rope.sin, self.slots, self.starts,
            decode_layers.new_tickets(decoder.config.heads, keys, sequences),
        )  # fmt: skip
        self._final_norm = decoder.final_norm * decoder.config.logit_scale
        self._glus: Sequence[Glu | None] = [ffn.glu() for _, ffn in decoder.blocks]

    def embed(self, ids: Tensor) -> Tensor:
        """The residual of tokens ids [sequences] int64, as the first launch of a step."""
        config = self._decoder.config
        return self._embed(ids, self._decoder.embed.codes, config.hidden, config.embed_scale, self._place.tickets)

    def enter(self) -> None:
        """What comes first in a step whose residual comes from elsewhere."""
        self._place.tickets.zero_()

    def attention(self, residual: Tensor, layer: int) -> Tensor:
        """The residual behind the attention of a layer."""
        config, (attention, _) = self._decoder.config, self._decoder.blocks[layer]
        assert attention.norm is not None
        return self._launch.attention(
            residual, self._cache.number_in_tier(layer), self._place, attention.norm, attention.qkv,
            attention.qkv_bias, attention.o, config.norm_eps, config.residual_scale, config.sliding_window or 0,
            self._overlap,
        )  # fmt: skip

    def ffn(self, residual: Tensor, layer: int, tally: Tensor) -> Tensor:
        """The residual behind the FFN of a layer, which is not shared; what it did is added to tally, [4] int64."""
        config, glu = self._decoder.config, self._glus[layer]
        if glu is not None and glu.guess is None:
            return self._launch.ffn(residual, glu, config.norm_eps, config.residual_scale, tally, self._overlap)
        return self._decoder.blocks[layer][1].decode(residual, tally)

    def choose(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [sequences, vocab] float32 of the last residual, the ids with the largest, and these."""
        norm = self._final_norm, self._decoder.config.norm_eps
        logits = self._linear(residual, self._decoder.lm_head.codes, norm, overlap=self._overlap)
        return logits, *self._argmax(logits)


class DeviceStep:
    """Steps of some sequences on one device, one new token each.

    Args:
        decoder: the network; `unfit` must have nothing against it.
        cache: of the sequences.
        tally: [layers, 4] int64, see `kernels.tally`; what each FFN did is added.
        sequences: how many.
        overlap: see `Launches`.

    Attributes:
        ids: [sequences] int64, the tokens that a step takes, and when it is done those with the largest logits.
        peaks: [sequences] float32, the largest logits.
        logits: [sequences, vocab] float32 of the latest step; always the same memory where a graph is replayed.
        parts: what a step consists of.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, tally: Tensor, sequences: int, overlap: bool | None = None
    ) -> None:
        self._layers, self._tally = len(decoder.blocks), tally
        self._launches = Launches(decoder, cache, decoder.tiers.head, sequences, overlap)
        self.ids = torch.zeros(sequences, dtype=torch.int64, device=decoder.device)
        self.peaks = torch.zeros(sequences, device=decoder.device)
        self.logits = torch.empty(0, device=decoder.device)
        self.parts: Sequence[Part] = [Part(self)]

    def place(self, slots: tuple[int, ...], starts: tuple[int, ...]) -> None:
        """Where the next step's sequences are: place in the cache and length so far. A step adds 1 to each length."""
        self._launches.slots.copy_(torch.tensor(slots, dtype=torch.int32))
        self._launches.starts.copy_(torch.tensor(starts, dtype=torch.int32))

    def take(self, ids: Tensor) -> None:
        """The tokens of the next step, [sequences] int64, where those that the last one chose are not to be taken."""
        self.ids.copy_(ids)

    def __call__(self) -> None:
        launches = self._launches
        residual = launches.embed(self.ids)
        for layer in range(self._layers):
            residual = launches.ffn(launches.attention(residual, layer), layer, self._tally[layer])
        self.logits, ids, peaks = launches.choose(residual)
        self.ids.copy_(ids)
        self.peaks.copy_(peaks)
        launches.starts.add_(1)
