"""The decoder: embedding, blocks, final norm, lm_head.

The residual stream is fp32 whatever the weights are: it is `hidden` numbers a token, and costs nothing beside them.
MiniCPM's scalings (Hu et al., "MiniCPM", 2024) stay scalars and are never folded into weights, so thresholds of the
FFN keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from prosparse.kernels import cpu
from prosparse.kernels.decode_layers import DecodeLayers, Glu
from prosparse.kernels.layer_norm import normalize
from prosparse.kernels.linear import linear
from prosparse.kernels.tally import SHARED_SIZE, SIZE, new_tally
from prosparse.kernels.weight import Weight

from ..config import ModelConfig
from .attention import Attention, Step
from .cache import KVCache
from .rope import RopeTable
from .tiers import Tier, Tiers


class FFN(Protocol):
    """An FFN block owns its norm, its scale and its add: residual [tokens, hidden] float32 in, the new residual out."""

    def prefill(self, residual: Tensor) -> Tensor:
        """Many tokens of a prompt."""

    def decode(self, residual: Tensor, tally: Tensor) -> Tensor:
        """The few tokens of one step; what was done is added to `tally`, [4] int64; where two devices share, [8]."""

    def bytes_read(self, steps: int, done: Sequence[int]) -> int:
        """Bytes of weights that decode steps had to read which tallied this."""

    def glu(self) -> Glu | None:
        """What `decode` computes, where that is one gated FFN: then a kernel may do whole layers in its stead."""


@dataclass(frozen=True, eq=False)
class Ends:
    """What lies between the tables of tokens and the blocks in some families.

    Args:
        positions: learned embeddings, added to those of tokens, [max_position + position_offset, hidden] float32.
        project_in, project_out: [hidden, embed_width] and [embed_width, hidden], where the tables are narrower.
        final_norm_bias: [hidden] float32.
    """

    positions: Tensor | None = None
    project_in: Weight | None = None
    project_out: Weight | None = None
    final_norm_bias: Tensor | None = None


PLAIN_ENDS = Ends()


class Decoder:
    """A dense network whose FFN blocks may be anything with the right signature.

    Args:
        config: sizes and constants.
        embed: token embeddings, [vocab, hidden].
        blocks: attention and FFN of each layer.
        final_norm: weight of the last norm, [hidden] float32; None for none.
        lm_head: [vocab, hidden]; the same object as `embed` when tied.
        context: the longest sequence, tokens.
        ends: what some families have beside these.
        tiers: which memory each part lies in; None is the embedding's device for all.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed: Weight,
        blocks: Sequence[tuple[Attention, FFN]],
        final_norm: Tensor | None,
        lm_head: Weight,
        context: int,
        ends: Ends = PLAIN_ENDS,
        tiers: Tiers | None = None,
    ) -> None:
        self.config, self.embed, self.blocks, self.final_norm, self.lm_head = config, embed, blocks, final_norm, lm_head
        self.context, self.device, self.ends = context, embed.codes.device, ends
        self.tiers = tiers or Tiers.one(self.device, len(blocks))
        self._ropes = {
            tier: RopeTable(config.rope, config.head_dim, config.max_position, context, tier.device)
            for tier in dict.fromkeys(self.tiers.layers)
        }
        on_cpu = self.tiers.is_one and self.device.type == "cpu"
        self._whole_layers = self._fuse() if on_cpu and cpu.available() else None

    @property
    def rope(self) -> RopeTable:
        """That of the first layer."""
        return self._ropes[self.tiers.layers[0]]

    def new_tally(self) -> Tensor | list[Tensor]:
        """Zeroed counters for `decode`."""
        if self.tiers.is_one:
            return new_tally(self.device, len(self.blocks))
        return [
            new_tally(tier.device, size=SIZE if beside is None else SHARED_SIZE)
            for tier, beside in zip(self.tiers.layers, self.tiers.beside, strict=True)
        ]

    def prefill(self, token_ids: Tensor, slot: int, start: int, cache: KVCache) -> Tensor:
        """Add a chunk of one sequence's prompt.

        Args:
            token_ids: [tokens] int64, or embeddings in their place, [tokens, embed_width or hidden] float32.
            slot: the sequence's place in the cache.
            start: how many tokens it already has there.

        Returns:
            final hidden states, [tokens, hidden] float32, for `logits`.
        """
        steps = self._steps((slot,), (start,), len(token_ids))
        embedded = token_ids.clone() if token_ids.is_floating_point() else self.embed_tokens(token_ids)
        residual = self._enter(embedded, (start,), len(token_ids))
        for tier, (attention, ffn) in zip(self.tiers.layers, self.blocks, strict=True):
            residual, step = tier.bring(residual), steps[tier]
            if self.config.block == "parallel":
                residual = attention(residual, step, cache, onto=ffn.prefill(residual))
            else:
                residual = ffn.prefill(attention(residual, step, cache))
        return self._finish(residual)

    def decode(
        self,
        token_ids: Tensor,
        slots: tuple[int, ...],
        starts: tuple[int, ...],
        cache: KVCache,
        tally: Tensor | Sequence[Tensor],
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """One step of some sequences, several rows each if speculation asks for them.

        Args:
            token_ids: [len(slots), rows] int64.
            slots, starts: place in the cache and length so far of each sequence.
            tally: from `new_tally`, see `kernels.tally`; what each layer's FFN did is added.
            watch: called with (layer, residual) before each FFN; the step is then walked block by block.

        Returns:
            final hidden states, [len(slots) * rows, hidden] float32, for `logits`.
        """
        steps = self._steps(slots, starts, token_ids.shape[1])
        residual = self._enter(self.embed_tokens(token_ids.flatten()), starts, token_ids.shape[1])
        if self._whole_layers is not None and watch is None and isinstance(tally, Tensor):
            step = next(iter(steps.values()))
            residual = self._whole_layers(residual, cache.keys, cache.values, step.cos, step.sin, slots, starts, tally)
        else:
            for layer, (tier, (attention, ffn)) in enumerate(zip(self.tiers.layers, self.blocks, strict=True)):
                residual, step = tier.bring(residual), steps[tier]
                between = residual if self.config.block == "parallel" else attention(residual, step, cache)
                if watch is not None:
                    watch(layer, between)
                after = ffn.decode(between, tally[layer])
                residual = attention(residual, step, cache, onto=after) if between is residual else after
        return self._finish(residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [tokens, vocab] float32, from final hidden states."""
        return linear(hidden, self.lm_head)

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Scaled embeddings of token_ids [tokens], [tokens, embed_width or hidden] float32."""
        return self.embed.rows_of(token_ids).mul_(self.config.embed_scale)

    def with_blocks(self, blocks: Sequence[tuple[Attention, FFN]]) -> Decoder:
        """The same model over the same tables with other blocks."""
        return Decoder(
            self.config, self.embed, blocks, self.final_norm, self.lm_head, self.context, self.ends, self.tiers
        )

    def _steps(self, slots: tuple[int, ...], starts: tuple[int, ...], rows: int) -> dict[Tier, Step]:
        return {tier: Step.at(slots, starts, rows, rope) for tier, rope in self._ropes.items()}

    def _fuse(self) -> DecodeLayers | None:
        """All layers as one op, if there are some and every FFN block allows it."""
        layers = []
        for attention, ffn in self.blocks:
            glu = ffn.glu()
            if glu is None:
                return None
            layers.append(attention.with_ffn(glu))
        if not layers:
            return None
        config = self.config
        return DecodeLayers(layers, config.norm_eps, config.residual_scale, config.sliding_window)

    def _enter(self, residual: Tensor, starts: tuple[int, ...], rows: int) -> Tensor:
        """The residual of the first block from embeddings, which may be overwritten."""
        if self.ends.project_in is not None:
            residual = linear(residual, self.ends.project_in)
        if self.ends.positions is not None:
            first = self.config.position_offset or 0
            for i, start in enumerate(starts):
                own = slice(i * rows, (i + 1) * rows)
                residual[own] += self.ends.positions[first + start : first + start + rows]
        return residual

    def _finish(self, residual: Tensor) -> Tensor:
        hidden = self.tiers.head.bring(residual)
        if self.final_norm is not None:
            hidden = normalize(hidden, self.final_norm, self.ends.final_norm_bias, self.config.norm_eps)
        if self.ends.project_out is not None:
            hidden = linear(hidden, self.ends.project_out)
        return hidden * self.config.logit_scale
