"""Subject "ffn": the FFN of one layer for one token, dense and exact, over weights that no cache holds.

Copies of the layer take turns, and so do inputs, so that every call meets weights and an active set that it has not
seen for a while. One channel of the input is constant and so is its column of the gate, which shifts all
pre-activations at once: one set of weights serves every activation sparsity, with the model's own activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.config.shapes import shape as shape_named
from prosparse.errors import UserError
from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight, bytes_per_row
from prosparse.weights.synthetic import Knobs, MatrixMaker

from .check import OPS, PLAIN_OPS, check_ffn, check_plain, clear_input
from .clock import Timing, interleave
from .probe import BUFFER_BYTES, Probe
from .progress import Progress
from .row import Row, floor, make_row, measured

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.88, 0.95, 0.98)
INPUTS, WARM_UP = 16, 4
Layer = tuple[Weight, ...]  # gate, up where there is one, down


def compare_ffn(
    shape: str = "minicpm-s-1b",
    sparsities: Sequence[float] = SPARSITIES,
    weights: str = "bf16",
    calls: int = 200,
    progress: Progress | None = None,
) -> list[Row]:
    """Time `glu_dense` and `glu_exact`, or the two of FFNs without up projection, on synthetic weights of a real shape.

    Args:
        shape: a name of `prosparse.config.shapes`, without dReLU.
        sparsities: activation sparsities, from 0 to 1.
        weights: format.
        calls: timed calls per op and sparsity.
        progress: called with (stage, done, total).

    Returns:
        Two rows per sparsity.

    Raises:
        UserError: no such shape or format, or a sparsity out of range.
        MachineError: not enough memory, or an op is wrong.
    """
    if bad := [sparsity for sparsity in sparsities if not 0 <= sparsity <= 1]:
        raise UserError(f"bench: activation sparsity must be from 0 to 1, got {bad[0]}")
    config, layers = cold_layers(shape, weights)
    probe, rows = Probe(), []
    for number, sparsity in enumerate(sparsities):
        if progress is not None:
            progress("timing", number, len(sparsities))
        rows += time_ffn(
            layers,
            config.activation,
            shift_of(config, sparsity),
            calls,
            probe,
            shape=shape,
            synthetic=knobs_of(sparsity),
        )
    return rows


def knobs_of(sparsity: float) -> dict[str, float]:
    """What such weights and inputs have: all neurons and all inputs are alike, tokens share active ones by chance."""
    return Knobs(sparsity, skew=0.2, predictability=0.0, overlap=1 - sparsity).as_dict()


def cold_layers(shape: str, weights: str) -> tuple[ModelConfig, list[Layer]]:
    """Copies of a layer of a shape, more of them than a cache holds.

    Raises:
        UserError: no such shape or format, or its FFNs are others.
        MachineError: not enough memory.
    """
    config = shape_named(shape)
    if config.activation.on_up:
        raise UserError(
            f"bench: the ffn subject needs a shape without dReLU, and {shape} has it; use the decode subject"
        )
    maker = MatrixMaker(weights)
    layer_bytes = (3 if config.gated else 2) * config.neurons * bytes_per_row(weights, config.hidden)
    copies = max(2, -(-BUFFER_BYTES // layer_bytes))
    maker.expect(copies * layer_bytes)
    return config, [make_layer(maker, config.neurons, config.hidden, config.gated) for _ in range(copies)]


def time_ffn(
    layers: Sequence[Layer], activation: Activation, shift: float, calls: int, probe: Probe, **labels: object
) -> list[Row]:
    """Check, then time, both ops over the layers in turn.

    Args:
        layers: copies of one layer, with a first gate column of 1 / sqrt(hidden).
        activation: of the gate.
        shift: value of the first channel of an input, which shifts all pre-activations.
        calls: timed calls per op.
        probe: for the bandwidth.
        labels: further keys of the rows.
    """
    gate, *up, down = layers[0]
    for mode in OPS:
        if up:
            check_ffn(mode, gate, *up, down, activation, clear_input(gate, activation, shift))
        else:
            check_plain(mode, gate, None, down, None, activation, shift)
    inputs = torch.randn(INPUTS, 1, gate.shape[1], generator=torch.Generator().manual_seed(0))
    inputs[:, 0, 0] = shift
    tallies = {mode: new_tally(inputs.device) for mode in OPS}

    def subject(mode: str) -> Callable[[int], object]:
        # Half the rotation apart: a mode that followed another on the same layer would find it in the cache.
        apart = list(OPS).index(mode) * len(layers) // len(OPS)

        def call(number: int) -> Tensor:
            x, (gate, *up, down) = inputs[number // len(layers) % INPUTS], layers[(number + apart) % len(layers)]
            if up:
                return OPS[mode](x, gate, *up, down, activation, tallies[mode])
            return PLAIN_OPS[mode](x, gate, None, down, None, activation, tallies[mode])

        return call

    timings = interleave({**{mode: subject(mode) for mode in OPS}, "probe": probe}, calls, WARM_UP)
    done = {mode: (tally.double() / (calls + WARM_UP)).tolist() for mode, tally in tallies.items()}
    return [ffn_row(mode, mode, done[mode], layers, timings, subject="ffn", repeat=1, **labels) for mode in OPS]


def shift_of(config: ModelConfig, sparsity: float) -> float:
    """The first channel of an input that leaves this share of the neurons of `make_gate` closed."""
    shift = config.activation.threshold - NormalDist().inv_cdf(min(max(sparsity, 1e-9), 1 - 1e-9))
    return shift * config.hidden**0.5


def make_gate(maker: MatrixMaker, neurons: int, hidden: int) -> Weight:
    """Every pre-activation is N(0, 1) for a normed input whose first channel is 0."""
    gate = maker.normal(neurons, hidden, hidden**-0.5)
    gate[:, 0] = hidden**-0.5
    return maker.finish(gate)


def make_down(maker: MatrixMaker, neurons: int, hidden: int) -> Weight:
    return maker.matrix(neurons, hidden, neurons**-0.5)


def make_layer(maker: MatrixMaker, neurons: int, hidden: int, gated: bool = True) -> Layer:
    """gate, up where it is gated, and down."""
    gate = make_gate(maker, neurons, hidden)
    up = (maker.matrix(neurons, hidden, hidden**-0.5),) if gated else ()
    return gate, *up, make_down(maker, neurons, hidden)


def ffn_row(
    name: str,
    mode: str,
    done: Sequence[float],
    layers: Sequence[Layer],
    timings: dict[str, Timing],
    batch: int = 1,
    **labels: object,
) -> Row:
    """The row of what an interleaved run calls `name`, in a mode; `done` is the tally of a call."""
    gate, *up, down = layers[0]
    held = len(layers) * sum(matrix.nbytes for matrix in layers[0])
    must_read = gate.nbytes + sum(done[UP_ROWS] * matrix.row_bytes for matrix in up) + done[DOWN_ROWS] * down.row_bytes
    return make_row(
        layers=1,
        mode=mode,
        weights=gate.format,
        batch=batch,
        activation_sparsity=round(1 - done[NONZERO] / (batch * gate.shape[0]), 6),
        **measured(timings, name),
        **floor(must_read, held, timings["probe"], timings[name]),
        **labels,
    )
