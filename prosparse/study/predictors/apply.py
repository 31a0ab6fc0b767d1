"""The engine's own weights with other FFN blocks: what `load` makes with a predictor, without a second copy."""

from __future__ import annotations

from ...engine import Engine
from ...model.decoder import Decoder
from ...sparsity.ffn import DenseFFN, ExactFFN, GatedFFN
from ...sparsity.predicted import PredictedFFN
from ...sparsity.selectors import Selector
from ...weights.predictor import Predictor
from ..watch import gated_ffns


def decoder_with(engine: Engine, how: Predictor | str) -> Decoder:
    """A decoder that decodes with a predictor, exact where that has none; or in mode "dense" or "exact"."""
    blocks = []
    for layer, ((attention, _), ffn) in enumerate(zip(engine.decoder.blocks, gated_ffns(engine), strict=True)):
        own = how.layers[layer] if isinstance(how, Predictor) else None
        parts = (ffn.norm, ffn.norm_eps, ffn.gate, ffn.up, ffn.down, ffn.activation, ffn.scale)
        block: GatedFFN = DenseFFN(*parts) if how == "dense" else ExactFFN(*parts)
        if own is not None:
            block = PredictedFFN(*parts, selector=Selector(own, ffn.gate))
        blocks.append((attention, block))
    return engine.decoder.with_blocks(blocks)
