"""How often neurons are active, hot-first and summed up: what a placement knows of a model's activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..config import ModelConfig
from ..weights.neuron_profile import Profile
from ..weights.predictor import Predictor
from ..weights.synthetic import Knobs, settle

Array = npt.NDArray[np.float64]
# Named over active neurons of the rank 256 predictors that docs/performance.md tells of: 17.5 % where 12 % are active.
NAMED = 1.46
SYNTHETIC_TOKENS = 1_000_000
EDGE = 1e-7  # what counts as never, so that its odds are finite


@dataclass(frozen=True, eq=False)
class Activity:
    """Of one layer's neurons in hot-first order, sums over the first k of them, [neurons + 1] each, from 0.

    Args:
        rows: rows of up and down that a token reads.
        opened: neurons whose gate is open.
        named: neurons that a predictor names.
        log_closed: log of the probability that all gates are closed, or no neuron named, if they were independent.
    """

    rows: Array
    opened: Array
    named: Array
    log_closed: Array


def activity_of(
    profile: Profile, config: ModelConfig, modes: Sequence[str], predictor: Predictor | None = None
) -> list[Activity]:
    """What a profile expects of each layer. Where a layer's mode is predicted, "closed" is "not named".

    In a dReLU model up has to be open as well: a neuron is active where both are, and its gate is taken to be open with
    the root of that probability.

    Raises:
        UserError: the profile does not say how many tokens it counts.
    """
    layers = []
    for layer, own in enumerate(profile.frequency):
        active = own[profile.hot_first(layer)].numpy()
        opened = np.sqrt(active) if config.activation.on_up else active
        named = np.minimum(1.0, named_over_active(predictor, layer) * opened)
        closed = np.log1p(-np.minimum(named if modes[layer] == "predicted" else opened, 1 - 1e-12))
        sums = (np.concatenate([[0.0], np.cumsum(each)]) for each in (opened + active, opened, named, closed))
        layers.append(Activity(*sums))
    return layers


def named_over_active(predictor: Predictor | None, layer: int) -> float:
    """How many neurons are named for each that is active: as the predictor says of itself, else `NAMED`."""
    rows = [] if predictor is None else predictor.about.get("layers", [])
    try:
        own = rows[layer]
        return float((1 - own["predicted_sparsity"]) / (1 - own["activation_sparsity"]))
    except (IndexError, KeyError, TypeError, ZeroDivisionError):
        return NAMED


def synthetic_profile(config: ModelConfig, model: str, knobs: Knobs | float) -> Profile:
    """A profile nobody measured: counts with the rates that `prosparse synth` gives the neurons of a shape."""
    activity = settle(config, knobs)
    text = f"synthetic: activation sparsity {activity.knobs.activation_sparsity:g}, skew {activity.knobs.skew:.2f}"
    rates = torch.stack([activity.rates(layer, config.neurons, 0) for layer in range(config.layers)])
    counts = (rates * SYNTHETIC_TOKENS).round().long()
    return Profile(counts, SYNTHETIC_TOKENS, model, "", text)


def stretched(profile: Profile, config: ModelConfig, model: str, sparsity: float) -> Profile:
    """The frequency curves of one model as those of another with more layers and neurons.

    A layer takes the curve between its neighbours' at the same depth, a neuron the frequency at the same rank; all odds
    are then multiplied by one number, so that the activation sparsity is the one asked for.
    """
    curves = profile.frequency.sort(1, descending=True).values[None, None]
    size = (config.layers, config.neurons)
    wide = torch.nn.functional.interpolate(curves, size, mode="bilinear", align_corners=True)[0, 0]
    logits, low, high = torch.logit(wide.clamp(EDGE, 1 - EDGE)), -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if float(torch.sigmoid(logits + middle).mean()) > 1 - sparsity else (middle, high)
    counts = (torch.sigmoid(logits + low) * SYNTHETIC_TOKENS).round().long()
    text = f"stretched from those of {profile.text} to activation sparsity {sparsity:g}"
    return Profile(counts, SYNTHETIC_TOKENS, model, "", text)
