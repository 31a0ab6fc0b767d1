"""Choose the mode and the layout of every layer."""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import UserError
from ..plan import MODES, LayerPlan, Plan, fingerprint

# Where only active neurons are read, the up and down rows of one are better one stretch of memory than two; where all
# are read, two matrices in order are better than one that is walked in steps.
LAYOUT_OF_MODE = {"dense": "rows", "exact": "bundled"}


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
    return Plan(fingerprint(config), (LayerPlan(mode, LAYOUT_OF_MODE[mode]),) * config.layers, reason)
