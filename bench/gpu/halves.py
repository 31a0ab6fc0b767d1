"""Synthetic weights in memory as plans for a GPU and a CPU place them, without a checkpoint in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.kernels.weight import Weight
from prosparse.weights import ModelWeights
from prosparse.weights.divide import Division
from prosparse.weights.formats import Formats
from prosparse.weights.memory import Arena, Block
from prosparse.weights.model_weights import ColdWeights, LayerWeights
from prosparse.weights.names import expected_shapes
from prosparse.weights.synthetic import Activity, MatrixMaker
from prosparse.weights.synthetic.model import Synthesis
from prosparse.weights.tables import names_of

SEED = 0  # of rates too: with it they are those of `placement.activity.synthetic_profile`


def reserved(device: torch.device) -> int:
    """Bytes that PyTorch holds of a GPU, after it has let go of what nobody uses; 0 of another device."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


class Halves:
    """The weights of a plan, filled layer by layer with copies.

    Args:
        config: of the model, whose FFNs are gated and without biases.
        fmt: weight format.
        division: what goes where.

    Attributes:
        reserved: bytes of the fast device that they take.
    """

    def __init__(self, config: ModelConfig, fmt: str, division: Division) -> None:
        self.division, self._layers = division, list[LayerWeights]()
        sizes, formats = expected_shapes(config), Formats(fmt, fmt)
        fast, slow = division.nbytes(names_of(config), sizes, formats, config.tied_embeddings)
        norms, before = (2 * config.layers + 1) * config.hidden * 4, reserved(division.fast)
        self._fast, self._slow = Block(fast + norms, division.fast), Arena(slow + norms)
        self.reserved = reserved(division.fast) - before

    def add(self, own: LayerWeights) -> None:
        """The next layer."""
        cut = self.division.layers[len(self._layers)]
        at = self._fast if cut.attention else self._slow
        assert own.up is not None, "the FFNs are gated"
        gate, up, down = own.gate, own.up, own.down
        cold = None
        if cut.order is not None:
            gate, cold_gate = self._divided(gate, cut.order, cut.gate)
            up, cold_up = self._divided(up, cut.order, cut.hot)
            down, cold_down = self._divided(down, cut.order, cut.hot)
            cold = ColdWeights(cold_gate, cold_up, cold_down)
        else:
            gate, up, down = (_copy(at, weight) for weight in (gate, up, down))
        made = dataclasses.replace(
            own,
            attention_norm=_moved(at, own.attention_norm),
            ffn_norm=_moved(at, own.ffn_norm),
            qkv=_copy(at, own.qkv),
            o=_copy(at, own.o),
            gate=gate,
            up=up,
            down=down,
            cold=cold,
        )
        self._layers.append(made)

    def model(self, embed: Weight, lm_head: Weight, final_norm: Tensor) -> ModelWeights:
        """All of it, with the ends."""
        last = self._fast if self.division.head else self._slow
        head = _copy(last, lm_head)
        return ModelWeights(
            embed=head if embed is lm_head else _copy(self._slow, embed),
            lm_head=head,
            final_norm=_moved(last, final_norm),
            layers=self._layers,
        )

    def _divided(self, weight: Weight, order: Tensor, cut: int) -> tuple[Weight, Weight]:
        """Rows of the first neurons in this order, and of the others."""
        order = order.to(weight.codes.device)
        near, far = (Weight(weight.codes[own], weight.packed_columns) for own in (order[:cut], order[cut:]))
        return _copy(self._fast, near), _copy(self._slow, far)


def synthesize(config: ModelConfig, fmt: str, activity: Activity, halves: Sequence[Halves]) -> list[ModelWeights]:
    """One model, made on the fast device a layer at a time, as each of some plans places it."""
    fast = halves[0].division.fast
    made = Synthesis(config, activity, MatrixMaker(fmt, SEED, device=fast), SEED)
    for own in made.layers():
        for each in halves:
            each.add(own)
    lm_head = made.lm_head()
    return [each.model(made.embed, lm_head, made.final_norm) for each in halves]


def _moved(to: Block, tensor: Tensor) -> Tensor:
    return to.empty(tensor.shape, tensor.dtype).copy_(tensor)


def _copy(to: Block, weight: Weight) -> Weight:
    return Weight(_moved(to, weight.codes), weight.packed_columns)
