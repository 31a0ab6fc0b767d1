"""Subject "adaptive": an exact FFN with the kernel that an engine chooses for it, against dense, from 0 to 100 % zeros.

What is to be shown is that exact is never slower: the engine's own choice is told what steps count, measures where the
times cross as it would for a model, and is timed beside both kernels, call by call in turns, over weights that no cache
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.config.shapes import shape as shape_named
from prosparse.engine.choice import LEAST, Choice, step_rows
from prosparse.errors import UserError
from prosparse.hardware import Times
from prosparse.hardware.crossover import measure_times
from prosparse.kernels.tally import new_tally
from prosparse.sparsity import ExactFFN

from .check import OPS, check_ffn, clear_input
from .clock import interleave
from .ffn import INPUTS, WARM_UP, Layer, cold_layers, ffn_row, knobs_of, shift_of
from .probe import Probe
from .progress import Progress
from .row import Row

SPARSITIES = (0.0, 0.25, 0.5, 0.7, 0.88, 0.95, 1.0)
ROWS = (1, 4)


class Measured:
    """What `hardware.KeptTimes` is to an engine, but measured by every run of the case."""

    def __init__(self, config: ModelConfig, layers: Sequence[Layer]) -> None:
        norm, hidden = torch.ones(config.hidden), config.hidden
        self._ffns = [ExactFFN(norm, config.norm_eps, *layer, config.activation, 1.0) for layer in layers]
        self._hidden = hidden
        self._known: dict[int, Times] = {}

    def known(self, rows: int) -> Times | None:
        return self._known.get(rows)

    def measured(self, rows: int) -> Times:
        self._known[rows] = measure_times(self._ffns, self._hidden, rows)
        return self._known[rows]


def compare_adaptive(
    shape: str = "minicpm-s-1b",
    weights: str = "bf16",
    rows: Sequence[int] = ROWS,
    sparsities: Sequence[float] = SPARSITIES,
    calls: int = 600,
    progress: Progress | None = None,
) -> list[Row]:
    """Time `glu_dense`, `glu_exact` and the one of them that an engine would choose.

    Args:
        shape: a name of `prosparse.config.shapes`, gated and without dReLU.
        weights: format.
        rows: numbers of tokens of a step.
        sparsities: activation sparsities of each token, from 0 to 1.
        calls: timed calls per op, number of tokens and sparsity.
        progress: called with (stage, done, total).

    Returns:
        Three rows per number of tokens and sparsity: dense, exact as chosen, exact always.

    Raises:
        UserError: no such shape or format, or its FFNs are others.
        MachineError: not enough memory, or an op is wrong.
    """
    if not shape_named(shape).gated:
        raise UserError(f"bench: the adaptive subject needs a shape with gated FFNs, and {shape} has others")
    config, layers = cold_layers(shape, weights)
    times, probe, made = Measured(config, layers), Probe(), []
    for tokens in rows:
        for sparsity in sparsities:
            if progress is not None:
                progress("timing", len(made) // 3, len(rows) * len(sparsities))
            made += _at(config, layers, times, tokens, sparsity, calls, probe, shape)
    return made


def _at(
    config: ModelConfig,
    layers: Sequence[Layer],
    times: Measured,
    tokens: int,
    sparsity: float,
    calls: int,
    probe: Probe,
    shape: str,
) -> list[Row]:
    gate, up, down = layers[0]
    activation, shift = config.activation, shift_of(config, sparsity)
    for mode in OPS:
        check_ffn(mode, gate, up, down, activation, clear_input(gate, activation, shift))
    inputs = torch.randn(INPUTS, tokens, config.hidden, generator=torch.Generator().manual_seed(0))
    inputs[:, :, 0] = shift
    kernel = _choose(config, layers[0], inputs, times)
    ops = {"dense": OPS["dense"], "chosen": OPS[kernel], "always": OPS["exact"]}
    tallies = {name: new_tally(inputs.device) for name in ops}

    def subject(name: str) -> Callable[[int], Tensor]:
        # apart, so that none finds in the cache what another has read
        first = list(ops).index(name) * len(layers) // len(ops)

        def call(number: int) -> Tensor:
            layer = layers[(number + first) % len(layers)]
            return ops[name](inputs[number // len(layers) % INPUTS], *layer, activation, tallies[name])

        return call

    turns: dict[str, Callable[[int], object]] = {}
    for i, name in enumerate(ops):  # each after a probe: after another op, threads are awake and the input is cached
        turns |= {f"probe before {name}": lambda number, i=i: probe(len(ops) * number + i), name: subject(name)}
    timings = interleave(turns, calls, WARM_UP)
    timings["probe"] = timings["probe before dense"]
    parts, found = {"dense": None, "chosen": f"chosen: {kernel}", "always": "always"}, times.known(step_rows(tokens))
    note = None if found is None else f"steps of {tokens}: the dense kernel is faster below {found.crossover:.1%} zeros"
    labels = {"subject": "adaptive", "repeat": 1, "shape": shape, "synthetic": knobs_of(sparsity), "batch": tokens}
    return [
        ffn_row(
            name,
            "dense" if name == "dense" else "exact",
            (tallies[name].double() / (calls + WARM_UP)).tolist(),
            layers,
            timings,
            part=part,
            note=note,
            **labels,
        )
        for name, part in parts.items()
    ]


def _choose(config: ModelConfig, layer: Layer, inputs: Tensor, times: Measured) -> str:
    """The kernel that steps with these inputs end up with."""
    tokens = inputs.shape[1]
    choice = Choice([()], [True], config.neurons, config.activation, times)
    for _ in range(2):
        which, tally = choice.which(tokens), new_tally(inputs.device)
        for step in range(LEAST):
            OPS["dense" if which[0] else "exact"](inputs[step % INPUTS], *layer, config.activation, tally)
        choice.learn(step_rows(tokens), which, LEAST, LEAST * tokens, [tally.tolist()])
        choice.settle()
    return "dense" if choice.which(tokens)[0] else "exact"
