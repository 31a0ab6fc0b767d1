"""Choose the mode and the layout of every layer."""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import UserError
from ..plan import MODES, LayerPlan, Plan, fingerprint
from ..weights.predictor import Predictor

# "bundled" makes an exact token 2 % faster in bf16, 1 % in int8 and no faster in int4, but a dense one 5 to 15 % slower
# in int8 and int4: docs/performance.md. A plan may still ask for it.
LAYOUT = "rows"


def choose(config: ModelConfig, mode: str, predictor: Predictor | None = None) -> Plan:
    """A plan with one mode for all layers, except that layers without a predictor are exact where others have one.

    Args:
        config: the model.
        mode: "auto" is predicted where a predictor is given, exact where the activation makes zeros, else dense; or one
            of `plan.MODES`.
        predictor: of the model, for mode predicted.

    Raises:
        UserError: unknown mode, exact or predicted on a model that makes no zeros, or predicted without a
            predictor of so many layers.
    """
    if mode not in ("auto", *MODES):
        raise UserError(f"load: mode is {mode!r}; supported are auto, {', '.join(MODES)}")
    zeros = config.activation.makes_zeros
    if mode == "auto" and predictor is not None:
        mode = "predicted"
    if mode in ("exact", "predicted") and not zeros:
        raise UserError(
            f"load: mode {mode} needs an activation that makes exact zeros, but this model uses {config.activation}; "
            "use --mode dense"
        )
    if mode == "predicted":
        if predictor is None:
            raise UserError(
                "load: mode predicted needs a predictor; make one with `prosparse predictor build` and pass it, or use "
                "--mode exact"
            )
        if len(predictor.layers) != config.layers:
            raise UserError(
                f"predictor: has {len(predictor.layers)} layers, the model {config.layers}; make one for this model "
                "with `prosparse predictor build`"
            )
        layers = tuple(LayerPlan("exact" if own is None else mode, LAYOUT) for own in predictor.layers)
        return Plan(fingerprint(config), layers, f"with a {predictor.kind} predictor")
    if mode != "auto":
        reason = "asked for"
    elif zeros:
        mode, reason = "exact", f"{config.activation} makes exact zeros, which are skipped"
    else:
        mode, reason = "dense", f"{config.activation} makes no exact zeros, so there is nothing to skip"
    return Plan(fingerprint(config), (LayerPlan(mode, LAYOUT),) * config.layers, reason)
