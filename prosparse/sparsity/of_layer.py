"""The FFN block of a layer that is more or less than one gated FFN."""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import UserError
from ..weights import LayerWeights
from .experts import ExpertsFFN
from .plain import PlainDenseFFN, PlainExactFFN, PlainFFN
from .plain_predicted import PlainPredictedFFN
from .selectors import Selector

PLAIN_OF_MODE: dict[str, type[PlainFFN]] = {"dense": PlainDenseFFN, "exact": PlainExactFFN}


def other_ffn(
    config: ModelConfig, own: LayerWeights, mode: str, selector: Selector | None = None
) -> PlainFFN | ExpertsFFN | None:
    """The block for an FFN without up projection, or with experts; None for one gated FFN.

    Raises:
        UserError: such a block does not run in this mode.
    """
    if own.up is not None and own.router is None:
        return None
    if own.up is not None and own.router is not None:
        if mode != "dense":
            raise UserError(f"load: experts have no mode {mode}; use --mode dense")
        return ExpertsFFN(
            own.ffn_norm, config.norm_eps, own.router, config.experts_per_token, own.gate, own.up, own.down,
            config.activation, config.residual_scale,
        )  # fmt: skip
    parts = (
        own.ffn_norm, own.ffn_norm_bias, config.norm_eps, own.gate, own.gate_bias, own.down, own.down_bias,
        config.activation, config.residual_scale, config.block == "post_norm",
    )  # fmt: skip
    if mode == "predicted":
        assert selector is not None, "a layer is predicted by its selector"
        return PlainPredictedFFN(*parts, selector=selector)
    return PLAIN_OF_MODE[mode](*parts)
