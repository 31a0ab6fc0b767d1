"""The FFN block of a layer that is more or less than one gated FFN."""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import UserError
from ..weights import LayerWeights
from .experts import ExpertsFFN
from .plain import PlainDenseFFN, PlainExactFFN, PlainFFN

PLAIN_OF_MODE: dict[str, type[PlainFFN]] = {"dense": PlainDenseFFN, "exact": PlainExactFFN}


def other_ffn(config: ModelConfig, own: LayerWeights, mode: str) -> PlainFFN | ExpertsFFN | None:
    """The block for an FFN without up projection, or with experts; None for one gated FFN.

    Raises:
        UserError: such a block does not run in this mode.
    """
    if own.up is not None and own.router is None:
        return None
    modes = list(PLAIN_OF_MODE) if own.up is None else ["dense"]
    if mode not in modes:
        kind = "FFNs without up projection" if own.up is None else "experts"
        raise UserError(f"load: {kind} have no mode {mode}; use --mode {' or '.join(modes)}")
    if own.up is not None and own.router is not None:
        return ExpertsFFN(
            own.ffn_norm, config.norm_eps, own.router, config.experts_per_token, own.gate, own.up, own.down,
            config.activation, config.residual_scale,
        )  # fmt: skip
    return PLAIN_OF_MODE[mode](
        own.ffn_norm, own.ffn_norm_bias, config.norm_eps, own.gate, own.gate_bias, own.down, own.down_bias,
        config.activation, config.residual_scale, post_norm=config.block == "post_norm",
    )  # fmt: skip
