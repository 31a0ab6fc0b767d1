"""A decode step as launches alone, from ids on the device to the ids it chose: what a CUDA graph can replay.

Nothing is decided or read on the host, and what a step takes and leaves lies in tensors that stay where they are. So a
second step may follow before the host has seen what the first one chose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prosparse.kernels import triton
from prosparse.kernels.decode_layers import Glu

from .cache import KVCache
from .decoder import Decoder


def why_no_step(decoder: Decoder) -> str | None:
    """What keeps a decoder's steps from being launches alone; None where they can be."""
    if decoder.device.type != "cuda":
        return f"the model is on {decoder.device.type}"
    return triton.why_not() or unfit(decoder)


def unfit(decoder: Decoder) -> str | None:
    """What this step does not compute of a decoder's network; None where it computes all of it."""
    if not decoder.tiers.is_one:
        return "the model lies in two memories"
    has_ends = any(part is not None for part in vars(decoder.ends).values())
    if decoder.config.block != "sequential" or has_ends or decoder.final_norm is None:
        return f"{decoder.config.family} has blocks or ends that the step does not know"
    if any(attention.norm_bias is not None or attention.o_bias is not None for attention, _ in decoder.blocks):
        return f"{decoder.config.family} has biases that the step does not know"
    return None


class DeviceStep:
    """Steps of some sequences, one new token each.

    Args:
        decoder: the network; `unfit` must have nothing against it.
        cache: of the sequences.
        tally: [layers, 4] int64, see `kernels.tally`; what each FFN did is added.
        sequences: how many.

    Attributes:
        ids: [sequences] int64, the tokens that a step takes, and when it is done those with the largest logits.
        slots, starts: [sequences] int32, place in the cache and length so far; a step adds 1 to each length.
        peaks: [sequences] float32, the largest logits.
        logits: [sequences, vocab] float32 of the latest step; always the same memory where a graph is replayed.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, tally: Tensor, sequences: int) -> None:
        from prosparse.kernels.triton import argmax, decode_layers, embed, linear  # Triton need not be installed

        assert decoder.final_norm is not None, "a step without final norm is refused by `unfit`"
        self._launch, self._embed, self._linear = decode_layers, embed.launch, linear.launch
        self._argmax = argmax.launch
        self._decoder, self._tally = decoder, tally
        device, config = decoder.device, decoder.config
        self.ids = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.slots, self.starts = (torch.zeros(sequences, dtype=torch.int32, device=device) for _ in range(2))
        self.peaks = torch.zeros(sequences, device=device)
        self.logits = torch.empty(0, device=device)
        self._place = decode_layers.Place(
            cache.keys, cache.values, decoder.rope.cos, decoder.rope.sin, self.slots, self.starts,
            decode_layers.new_tickets(config.heads, cache.keys, sequences),
        )  # fmt: skip
        self._final_norm = decoder.final_norm * config.logit_scale
        self._glus: Sequence[Glu | None] = [ffn.glu() for _, ffn in decoder.blocks]

    def __call__(self) -> None:
        decoder, config = self._decoder, self._decoder.config
        eps, scale = config.norm_eps, config.residual_scale
        table = decoder.embed.codes
        residual = self._embed(self.ids, table, config.hidden, config.embed_scale, self._place.tickets)
        for layer, (attention, ffn) in enumerate(decoder.blocks):
            assert attention.norm is not None
            residual = self._launch.attention(
                residual, layer, self._place, attention.norm, attention.qkv, attention.qkv_bias, attention.o, eps,
                scale, config.sliding_window or 0,
            )  # fmt: skip
            glu = self._glus[layer]
            if glu is not None and glu.guess is None:
                residual = self._launch.ffn(residual, glu, eps, scale, self._tally[layer])
            else:
                residual = ffn.decode(residual, self._tally[layer])
        self.logits = self._linear(residual, decoder.lm_head.codes, (self._final_norm, eps))
        ids, peaks = self._argmax(self.logits)
        self.ids.copy_(ids)
        self.peaks.copy_(peaks)
        self.starts.add_(1)
