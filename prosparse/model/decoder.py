"""The decoder: embedding, blocks, final norm, lm_head.

The residual stream is fp32 whatever the weights are: it is `hidden` numbers a token, and costs nothing beside them.
MiniCPM's scalings (Hu et al., "MiniCPM", 2024) stay scalars and are never folded into weights, so thresholds of the
FFN keep their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from prosparse.kernels import cpu
from prosparse.kernels.decode_layers import DecodeLayers, Glu
from prosparse.kernels.linear import linear
from prosparse.kernels.rms_norm import rms_norm
from prosparse.kernels.weight import Weight

from ..config import ModelConfig
from .attention import Attention, Step
from .cache import KVCache
from .rope import RopeTable


class FFN(Protocol):
    """An FFN block owns its norm, its scale and its add: residual [tokens, hidden] float32 in, the new residual out."""

    def prefill(self, residual: Tensor) -> Tensor:
        """Many tokens of a prompt."""

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """The few tokens of one step; what was done is added to `tally`, [4] int64."""

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        """Bytes of weights that decode steps had to read which tallied this."""

    def glu(self) -> Glu | None:
        """What `decode` computes, where that is a plain gated FFN: then a kernel may do whole layers in its stead."""


class Decoder:
    """A dense network whose FFN blocks may be anything with the right signature.

    Args:
        config: sizes and constants.
        embed: token embeddings, [vocab, hidden].
        blocks: attention and FFN of each layer.
        final_norm: RMSNorm weight, [hidden] float32.
        lm_head: [vocab, hidden]; the same object as `embed` when tied.
        context: the longest sequence, tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed: Weight,
        blocks: Sequence[tuple[Attention, FFN]],
        final_norm: Tensor,
        lm_head: Weight,
        context: int,
    ) -> None:
        self.config, self.embed, self.blocks, self.final_norm, self.lm_head = config, embed, blocks, final_norm, lm_head
        self.context, self.device = context, embed.codes.device
        self.rope = RopeTable(config.rope, config.head_dim, config.max_position, context, self.device)
        self._whole_layers = self._fuse() if self.device.type == "cpu" and cpu.available() else None

    def prefill(self, token_ids: Tensor, slot: int, start: int, cache: KVCache) -> Tensor:
        """Add a chunk of one sequence's prompt.

        Args:
            token_ids: [tokens] int64.
            slot: the sequence's place in the cache.
            start: how many tokens it already has there.

        Returns:
            final hidden states, [tokens, hidden] float32, for `logits`.
        """
        step = Step.at((slot,), (start,), token_ids.numel(), self.rope)
        residual = self._embed(token_ids)
        for attention, ffn in self.blocks:
            residual = ffn.prefill(attention(residual, step, cache))
        return self._finish(residual)

    def decode(
        self, token_ids: Tensor, slots: tuple[int, ...], starts: tuple[int, ...], cache: KVCache, tally: Tensor
    ) -> Tensor:
        """One step of some sequences, several rows each if speculation asks for them.

        Args:
            token_ids: [len(slots), rows] int64.
            slots, starts: place in the cache and length so far of each sequence.
            tally: [layers, 4] int64, see `kernels.tally`; what each layer's FFN did is added.

        Returns:
            final hidden states, [len(slots) * rows, hidden] float32, for `logits`.
        """
        step = Step.at(slots, starts, token_ids.shape[1], self.rope)
        residual = self._embed(token_ids.flatten())
        if self._whole_layers is not None:
            residual = self._whole_layers(residual, cache.keys, cache.values, step.cos, step.sin, slots, starts, tally)
        else:
            for layer, (attention, ffn) in enumerate(self.blocks):
                residual = ffn.decode(attention(residual, step, cache), tally[layer])
        return self._finish(residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [tokens, vocab] float32, from final hidden states."""
        return linear(hidden, self.lm_head)

    def _fuse(self) -> DecodeLayers | None:
        """All layers as one op, if every FFN block allows it."""
        layers = []
        for attention, ffn in self.blocks:
            glu = ffn.glu()
            if glu is None:
                return None
            layers.append(attention.with_ffn(glu))
        config = self.config
        return DecodeLayers(layers, config.norm_eps, config.residual_scale, config.sliding_window)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return self.embed.rows_of(token_ids).mul_(self.config.embed_scale)

    def _finish(self, residual: Tensor) -> Tensor:
        hidden = rms_norm(residual, self.final_norm, self.config.norm_eps)
        return hidden.mul_(self.config.logit_scale)
