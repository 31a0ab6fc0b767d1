"""The engine's own weights with other FFN blocks: what `load` makes with a predictor, without a second copy."""

from __future__ import annotations

from ...engine import Engine
from ...model.decoder import FFN, Decoder
from ...sparsity import (
    DenseFFN,
    ExactFFN,
    PlainDenseFFN,
    PlainExactFFN,
    PlainFFN,
    PlainPredictedFFN,
    PredictedFFN,
    Selector,
)
from ...weights.predictor import LayerPredictor, Predictor
from ..watch import AnyFFN, open_ffns


def decoder_with(engine: Engine, how: Predictor | str) -> Decoder:
    """A decoder that decodes with a predictor, exact where that has none; or in mode "dense" or "exact"."""
    blocks = []
    for layer, ((attention, _), ffn) in enumerate(zip(engine.decoder.blocks, open_ffns(engine), strict=True)):
        own = how.layers[layer] if isinstance(how, Predictor) else None
        blocks.append((attention, _block(ffn, how == "dense", own)))
    return engine.decoder.with_blocks(blocks)


def _block(ffn: AnyFFN, dense: bool, own: LayerPredictor | None) -> FFN:
    selector = None if own is None else Selector(own, ffn.gate)
    if isinstance(ffn, PlainFFN):
        plain = (
            ffn.norm, ffn.norm_bias, ffn.norm_eps, ffn.gate, ffn.gate_bias, ffn.down, ffn.down_bias, ffn.activation,
            ffn.scale, ffn.post_norm,
        )  # fmt: skip
        if selector is not None:
            return PlainPredictedFFN(*plain, selector=selector)
        return PlainDenseFFN(*plain) if dense else PlainExactFFN(*plain)
    parts = (ffn.norm, ffn.norm_eps, ffn.gate, ffn.up, ffn.down, ffn.activation, ffn.scale)
    if selector is not None:
        return PredictedFFN(*parts, selector=selector)
    return DenseFFN(*parts) if dense else ExactFFN(*parts)
