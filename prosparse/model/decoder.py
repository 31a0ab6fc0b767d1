"""The decoder: embedding, blocks, final norm, lm_head.

The residual stream is fp32 whatever the weights are: it is `hidden` numbers a token, and costs nothing beside them.
MiniCPM's scalings (Hu et al., "MiniCPM", 2024) stay scalars and are never folded into weights, so thresholds of the
FFN keep their meaning.
"""

from __future__ import annotations

import copy
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


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive layers in one memory, whose FFNs are all there or all on a second one too.

    Args:
        first, end: layers from first on, before end.
        tier: the memory.
        counters: of each FFN's tally.
        whole: the op that computes all of them in a decode step; None where they are walked block by block.
    """

    first: int
    end: int
    tier: Tier
    counters: int
    whole: DecodeLayers | None


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
        self._runs = self._find_runs()

    @property
    def rope(self) -> RopeTable:
        """That of the first layer."""
        return self._ropes[self.tiers.layers[0]]

    @property
    def runs(self) -> Sequence[Run]:
        """The layers, by where they are."""
        return self._runs

    def rope_of(self, tier: Tier) -> RopeTable:
        """The angles of every position, where a tier's layers read them."""
        return self._ropes[tier]

    def new_tally(self) -> Tensor | list[Tensor]:
        """Zeroed counters for `decode`: [layers, counters] int64 of each run of layers; a tensor where there is one."""
        parts = [new_tally(run.tier.device, run.end - run.first, size=run.counters) for run in self._runs]
        return parts[0] if len(parts) == 1 else parts

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
        return self.finish(residual)

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
        parts = [tally] if isinstance(tally, Tensor) else tally
        for run, own in zip(self._runs, parts, strict=True):
            residual = self.through(run, run.tier.bring(residual), steps[run.tier], cache, own, watch)
        return self.finish(residual)

    def through(
        self,
        run: Run,
        residual: Tensor,
        step: Step,
        cache: KVCache,
        tally: Tensor,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Some layers of a decode step: the residual before them, [tokens, hidden] where they are, to that behind them.

        `tally` is that of the run, [layers, counters] int64; the others are those of `decode`.
        """
        if run.whole is None or watch is not None:
            return self._walk(run, residual, step, cache, tally, watch)
        keys, values = cache.of_layers(run.first, run.end)
        return run.whole(residual, keys, values, step.cos, step.sin, step.slots, step.starts, tally)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [tokens, vocab] float32, from final hidden states."""
        return linear(hidden, self.lm_head)

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Scaled embeddings of token_ids [tokens], [tokens, embed_width or hidden] float32."""
        return self.embed.rows_of(token_ids).mul_(self.config.embed_scale)

    def with_blocks(self, blocks: Sequence[tuple[Attention, FFN]]) -> Decoder:
        """The same model over the same tables with other blocks."""
        made = copy.copy(self)  # with its angles: of a long context they take a moment, and a run may be waiting
        made.blocks = blocks
        made._runs = made._find_runs()
        return made

    def step_of(self, tier: Tier, slots: tuple[int, ...], starts: tuple[int, ...]) -> Step:
        """One new token of each sequence, for `through`."""
        return Step.at(slots, starts, 1, self._ropes[tier])

    def _steps(self, slots: tuple[int, ...], starts: tuple[int, ...], rows: int) -> dict[Tier, Step]:
        return {tier: Step.at(slots, starts, rows, rope) for tier, rope in self._ropes.items()}

    def _walk(
        self,
        run: Run,
        residual: Tensor,
        step: Step,
        cache: KVCache,
        tally: Tensor,
        watch: Callable[[int, Tensor], None] | None,
    ) -> Tensor:
        """A decode step of some layers, block by block."""
        for layer, own in zip(range(run.first, run.end), tally, strict=True):
            attention, ffn = self.blocks[layer]
            between = residual if self.config.block == "parallel" else attention(residual, step, cache)
            if watch is not None:
                watch(layer, between)
            after = ffn.decode(between, own)
            residual = attention(residual, step, cache, onto=after) if between is residual else after
        return residual

    def _find_runs(self) -> list[Run]:
        kinds = [
            (tier, SIZE if beside is None else SHARED_SIZE)
            for tier, beside in zip(self.tiers.layers, self.tiers.beside, strict=True)
        ]
        starts = [layer for layer in range(len(kinds)) if not layer or kinds[layer] != kinds[layer - 1]]
        return [
            Run(first, end, *kinds[first], self._fuse(first, end, kinds[first][0]))
            for first, end in zip(starts, [*starts[1:], len(kinds)], strict=False)
        ]

    def _fuse(self, first: int, end: int, tier: Tier) -> DecodeLayers | None:
        """Some layers as one op, if they are on the CPU and every FFN block allows it."""
        if tier.device.type != "cpu" or not cpu.available():
            return None
        layers = []
        for attention, ffn in self.blocks[first:end]:
            glu = ffn.glu()
            if glu is None:
                return None
            layers.append(attention.with_ffn(glu))
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

    def finish(self, residual: Tensor) -> Tensor:
        """Final hidden states, for `logits`, from the residual behind the last layer."""
        hidden = self.tiers.head.bring(residual)
        if self.final_norm is not None:
            hidden = normalize(hidden, self.final_norm, self.ends.final_norm_bias, self.config.norm_eps)
        if self.ends.project_out is not None:
            hidden = linear(hidden, self.ends.project_out)
        return hidden * self.config.logit_scale
