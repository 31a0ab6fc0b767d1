"""Measures on a model what a synthetic one was asked to be: `prosparse synth` checks its work with it.

The text is a walk that calibration has not seen. `docs/synthetic.md` defines the four values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import Engine
from ..weights.synthetic import Activity, Knobs, PlantedBases, walk
from ..weights.synthetic.activity import HOT
from .measure.engine_subject import EngineSubject
from .watch import open_ffns

SEQUENCES, LENGTH = 2, 256  # the text: enough for a point of a hundred, in the time of a prompt
TEXT_SEED = 1_000  # away from the seeds that people give weights


def measure_knobs(
    engine: Engine, activity: Activity, seed: int = 0, sequences: int = SEQUENCES, length: int = LENGTH
) -> dict[str, float | None]:
    """The four values as they are.

    Args:
        engine: of a synthetic model.
        activity: what it was planned to be, which says the neurons that should be hottest.
        seed: that it was made with, on the same kind of device.
        sequences, length: of the text.

    Returns:
        name to value, as in `Knobs`; None where nothing defines it, as there is no overlap without active neurons.
    """
    config = engine.config
    tokens = min(length, engine.context)
    counter = _Counter(activity, config.neurons, seed)
    windows = torch.stack([walk(config.vocab, tokens, TEXT_SEED + number) for number in range(sequences)])
    EngineSubject(engine).read(windows, counter.look)
    ffns = open_ffns(engine)
    bases = PlantedBases(config.hidden, seed, engine.decoder.device)
    shares = [planted_share(ffn.gate.values(), bases[layer]) for layer, ffn in enumerate(ffns)]
    open_ = counter.active / (counter.tokens * config.neurons)
    return {
        "activation_sparsity": round(1 - float(open_.mean()), 4),
        "skew": _mean(counter.hot / counter.active),
        "predictability": round(sum(shares) / len(shares), 4),
        "overlap": _mean(counter.kept / counter.after_first),
    }


def planted_share(gate: Tensor, basis: Tensor) -> float:
    """Share of a gate's energy that lies in a row space, beyond what lies there of any random matrix.

    Args:
        gate: [neurons, hidden] float32; column 0, the bias, does not count.
        basis: [rank, hidden] float32, orthonormal rows, 0 in column 0.
    """
    inside = float((gate @ basis.t()).square().sum()) / float(gate[:, 1:].square().sum())
    chance = basis.shape[0] / (basis.shape[1] - 1)
    return (inside - chance) / (1 - chance)


def difference(asked: Knobs, measured: dict[str, float | None]) -> float:
    """The largest difference of a value from what was asked for, of those that are defined."""
    wanted = asked.as_dict()
    return max(abs(wanted[name] - value) for name, value in measured.items() if value is not None)


class _Counter:
    """Counts of each layer, [layers] float64, over all tokens of all windows.

    active: activations. hot: those of the fifth of the neurons that was planned to be hottest. kept: those of neurons
    that were active for the token before as well. after_first: those of tokens that have one before.
    """

    def __init__(self, activity: Activity, neurons: int, seed: int) -> None:
        layers = activity.layer_rates.numel()
        self.active, self.hot, self.kept, self.after_first = torch.zeros(4, layers, dtype=torch.float64)
        self.tokens, hottest = 0, round(HOT * neurons)
        rates = [activity.rates(layer, neurons, seed) for layer in range(layers)]
        self._hottest = [own.argsort(descending=True)[:hottest] for own in rates]

    def look(self, layer: int, x: Tensor, value: Tensor, h: Tensor) -> None:
        """h is act(gate) * up of one window, [1, tokens, neurons]."""
        active = h[0] != 0
        self.tokens += active.shape[0] if layer == 0 else 0
        self.active[layer] += int(active.sum())
        self.hot[layer] += int(active[:, self._hottest[layer].to(active.device)].sum())
        self.kept[layer] += int((active[1:] & active[:-1]).sum())
        self.after_first[layer] += int(active[1:].sum())


def _mean(shares: Tensor) -> float | None:
    """Over the layers in which there is one."""
    known = shares[shares.isfinite()]
    return round(float(known.mean()), 4) if known.numel() else None
