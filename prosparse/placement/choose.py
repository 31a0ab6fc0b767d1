"""Choose the mode and the layout of every layer."""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import UserError
from ..plan import MODES, LayerPlan, Plan, fingerprint

# "bundled" makes an exact token 2 % faster in bf16, 1 % in int8 and no faster in int4, but a dense one 5 to 15 % slower
# in int8 and int4: docs/performance.md. A plan may still ask for it.
LAYOUT = "rows"


def choose(config: ModelConfig, mode: str) -> Plan:
    """A plan with one mode for all layers.

    Args:
        config: the model.
        mode: "auto" is exact where the activation makes zeros, else dense; or one of `plan.MODES`.

    Raises:
        UserError: unknown mode, or exact on a model that makes no zeros.
    """
    if mode not in ("auto", *MODES):
        raise UserError(f"load: mode is {mode!r}; supported are auto, {', '.join(MODES)}")
    zeros = config.activation.makes_zeros
    if mode == "exact" and not zeros:
        raise UserError(
            f"load: mode exact needs an activation that makes exact zeros, but this model uses {config.activation}; "
            "use --mode dense"
        )
    if mode != "auto":
        reason = "asked for"
    elif zeros:
        mode, reason = "exact", f"{config.activation} makes exact zeros, which are skipped"
    else:
        mode, reason = "dense", f"{config.activation} makes no exact zeros, so there is nothing to skip"
    return Plan(fingerprint(config), (LayerPlan(mode, LAYOUT),) * config.layers, reason)
