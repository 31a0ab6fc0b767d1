"""Makes a model layer by layer: each is calibrated on tokens that have passed the layers before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prosparse.kernels.weight import Weight

from ...config import ModelConfig
from ..model_weights import LayerWeights, ModelWeights
from .knobs import Activity, Knobs, planted_rank, settle
from .matrices import MatrixMaker, Progress, weight_bytes
from .stream import Stream, products, set_bias
from .text import CLUSTER

CONSTANT = 0.2  # the constant coordinate of an embedding, as a share of the norm of the others: 4 % of the energy
GROWTH = 0.25  # energy that all blocks together add to the residual, as a share of the embedding's
ROWS = 4096  # of the embedding that are changed at a time


def synthetic_weights(
    config: ModelConfig,
    fmt: str,
    knobs: Knobs | float,
    seed: int = 0,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ModelWeights, Knobs]:
    """A model in memory.

    Args:
        config: the shape, with an activation that makes zeros; a FATReLU keeps its threshold.
        fmt: weight format.
        knobs: what it is asked to be, or its activation sparsity alone.
        seed: the same arguments give the same weights on the same kind of device.
        progress: called with (done, total) bytes of weights.
        device: where the weights are made, and stay.

    Returns:
        The weights, and the knobs with those filled in that were left out.

    Raises:
        UserError: a knob out of its range, no such format, or an activation that makes no zeros.
        MachineError: not enough memory.
    """
    activity = settle(config, knobs)
    maker = MatrixMaker(fmt, seed, progress, device)
    maker.expect(weight_bytes(config, fmt))
    made = Synthesis(config, activity, maker, seed)
    layers = list(made.layers())
    ends = made.final_norm, layers, made.final_norm_bias, made.positions
    return ModelWeights(made.embed, made.lm_head(), *ends), activity.knobs


class Synthesis:
    """A model in the making.

    Args:
        config: the shape.
        activity: its settled knobs.
        maker: of the matrices.
        seed: of rates and planted parts.

    Attributes:
        embed: token embeddings.
        final_norm, final_norm_bias: weight and, of a LayerNorm, bias, [hidden] float32.
        positions: of a model that has a table of them, [max_position + position_offset, hidden] float32, zeros.
    """

    def __init__(self, config: ModelConfig, activity: Activity, maker: MatrixMaker, seed: int) -> None:
        self._config, self._activity, self._maker, self._seed = config, activity, maker, seed
        self._bases = PlantedBases(config.hidden, seed, maker.device)
        self.embed = maker.finish(self._embedding())
        self.final_norm = torch.ones(config.hidden, device=maker.device)
        if config.tied_embeddings:
            # A tied model with equal signs would say every token again and again, so like is it to its own embedding.
            # The size gives its logits a deviation of 1, which an untied lm_head has.
            signs = torch.randint(2, (config.hidden,), generator=maker.rng, device=maker.device) * 2 - 1
            self.final_norm = signs * (config.embed_scale / config.logit_scale / config.hidden**0.5)
        self.final_norm_bias = self._zeros(config.hidden) if config.norm == "layer" else None
        offset = config.position_offset
        self.positions = None if offset is None else self._zeros(config.max_position + offset, config.hidden)

    def layers(self) -> Iterator[LayerWeights]:
        """The layers, each made when it is asked for."""
        config, maker = self._config, self._maker
        ids = torch.randint(config.vocab, (Stream.tokens(config),), generator=maker.rng, device=maker.device)
        stream = Stream(config, self.embed.rows_of(ids).mul_(config.embed_scale))
        for layer in range(config.layers):
            yield self._layer(layer, stream)

    def lm_head(self) -> Weight:
        """[vocab, hidden]."""
        config = self._config
        if config.tied_embeddings:
            return self.embed
        return self._maker.matrix(config.vocab, config.hidden, config.hidden**-0.5 / config.logit_scale)

    def _embedding(self) -> Tensor:
        """1 per channel once it is scaled; tokens of a cluster share a part that gives the correlation its size."""
        config, maker, shared = self._config, self._maker, self._activity.correlation
        scale = 1 / config.embed_scale
        values = maker.normal(config.vocab, config.hidden, (1 - shared) ** 0.5 * scale)
        clusters = -(-config.vocab // CLUSTER)
        centers = torch.randn(clusters, config.hidden, generator=maker.rng, device=maker.device)
        centers *= shared**0.5 * scale
        cluster = torch.arange(config.vocab, device=maker.device) // CLUSTER
        for rows, which in zip(values.split(ROWS), cluster.split(ROWS), strict=True):
            rows += centers[which]
        values[:, 0] = CONSTANT * config.hidden**0.5 * scale
        return values

    def _layer(self, layer: int, stream: Stream) -> LayerWeights:
        config, maker, hidden = self._config, self._maker, self._config.hidden
        attended = config.heads * config.head_dim
        rows = attended + 2 * config.kv_heads * config.head_dim
        share = (GROWTH / (2 * config.layers)) ** 0.5 / config.residual_scale  # deviation of a block's output
        qkv = maker.matrix(rows, hidden, hidden**-0.5)
        o = maker.normal(hidden, attended, attended**-0.5 * share)
        o[0] = 0  # nothing is added to the constant coordinate
        stream.add(stream.attend(qkv), o.t())
        norm = torch.ones(hidden, device=maker.device)
        norm_bias = self._zeros(hidden) if config.norm == "layer" else None
        return LayerWeights(
            attention_norm=norm,
            qkv=qkv,
            qkv_bias=self._zeros(rows) if config.attention_bias else None,
            o=maker.finish(o),
            ffn_norm=norm,
            attention_norm_bias=norm_bias,
            o_bias=self._zeros(hidden) if config.output_bias else None,
            ffn_norm_bias=norm_bias,
            gate_bias=self._zeros(config.neurons) if config.ffn_bias else None,
            down_bias=self._zeros(hidden) if config.ffn_bias else None,
            **self._ffn(layer, stream, share),
        )

    def _zeros(self, *shape: int) -> Tensor:
        """What a model has and these weights need not: column 0 of a matrix is its bias."""
        return torch.zeros(*shape, device=self._maker.device)

    def _ffn(self, layer: int, stream: Stream, share: float) -> dict[str, Weight | None]:
        config, maker, hidden, neurons = self._config, self._maker, self._config.hidden, self._config.neurons
        activation, rates = config.activation, self._activity.rates(layer, neurons, self._seed)
        if activation.on_up:
            rates = rates.sqrt()  # gate and up must both be open, and either is as often
        gate = maker.planted(neurons, self._bases[layer], self._activity.knobs.predictability or 0.0, hidden**-0.5)
        up = maker.normal(neurons, hidden, hidden**-0.5) if config.gated else None
        x = stream.normed()
        g = set_bias(x, gate, rates, activation.threshold)
        half = torch.full_like(rates, 0.5)
        u = None if up is None else set_bias(x, up, rates if activation.on_up else half, 0.0)
        h = products(g, u, activation)
        size = float(h.square().sum(1).mean()) ** 0.5
        down = maker.normal(neurons, hidden, share / size if size else neurons**-0.5)
        down[:, 0] = 0
        stream.add(h, down)
        made = None if up is None else maker.finish(up)
        return {"gate": maker.finish(gate), "up": made, "down": maker.finish(down)}


class PlantedBases:
    """Row space of the planted part of each layer's gate: [rank, hidden] float32, orthonormal rows.

    All are one random basis whose coordinates are dealt anew for every layer, which costs a thousandth of a new one.
    Column 0 is left out, since there is the bias.

    Args:
        hidden: columns.
        seed: the same gives the same on the same kind of device.
        device: where they are made.
    """

    def __init__(self, hidden: int, seed: int, device: torch.device | str) -> None:
        self._rng = torch.Generator(device).manual_seed(seed)
        shape = (hidden - 1, planted_rank(hidden))
        self._basis = torch.linalg.qr(torch.randn(shape, generator=self._rng, device=device)).Q.t()
        self._seed, self._device = seed, device

    def __getitem__(self, layer: int) -> Tensor:
        self._rng.manual_seed(self._seed * 1_000_003 + layer + 1)
        rank, columns = self._basis.shape
        order = torch.randperm(columns, generator=self._rng, device=self._device)
        basis = torch.zeros(rank, columns + 1, device=self._device)
        basis[:, 1:] = self._basis[:, order]
        return basis
