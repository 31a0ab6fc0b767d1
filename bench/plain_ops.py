"""The ops of FFNs without up projection for the "ops" subject: OPT's and Falcon's with ReLU, at a shape's sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.axpy_active import axpy_active, axpy_active_reference
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.linear_active import linear_active, linear_active_reference
from prosparse.kernels.plain_dense import plain_dense, plain_dense_reference
from prosparse.kernels.plain_exact import plain_exact, plain_exact_reference
from prosparse.kernels.plain_predicted import plain_predicted, plain_predicted_reference
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, PREDICTED, new_tally
from prosparse.kernels.weight import Weight, bytes_per_row
from prosparse.weights.synthetic import MatrixMaker

from .check import FIXED_POINT, clear_input, require_close
from .cold import copies_of, distance, in_turn
from .ffn import INPUTS, make_down, make_gate, shift_of
from .op_cases import Op, normal

RELU = Activation("relu")
WHOLE = "plain_dense over the same weights in the same run"


@dataclass(frozen=True, eq=False)
class Token:
    """An input of one layer, and which neurons it opens there.

    Args:
        x: [1, hidden].
        active: with gate values.
        h: act(gate), [1, neurons].
    """

    x: Tensor
    active: ActiveNeurons
    h: Tensor


Call = Callable[[Token, Weight, Weight, Tensor], Tensor]  # token, gate, down, tally


def _dense(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return plain_dense(token.x, gate, None, down, None, RELU, tally)


def _dense_reference(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return plain_dense_reference(token.x, gate.codes, None, down.codes, None, RELU.code, 0.0, tally)


def _exact(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return plain_exact(token.x, gate, None, down, None, RELU, tally)


def _exact_reference(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return plain_exact_reference(token.x, gate.codes, None, down.codes, None, RELU.code, 0.0, tally)


def _predicted(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return plain_predicted(token.x, gate, None, down, None, token.active, RELU, tally)


def _predicted_reference(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    named = (token.active.index, token.active.count)
    return plain_predicted_reference(token.x, gate.codes, None, down.codes, None, *named, RELU.code, 0.0, tally)


def _axpy(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return axpy_active(token.h, down, None, tally)


def _axpy_reference(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return axpy_active_reference(token.h, down.codes, down.shape[1], None, tally)


def _first(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return linear_active(token.x, gate, None, token.active, tally)


def _first_reference(token: Token, gate: Weight, down: Weight, tally: Tensor) -> Tensor:
    return linear_active_reference(token.x, gate.codes, None, token.active.index, token.active.count, tally)


# name: mode, op, reference, whether it reads the whole gate, whether it is compared with plain_dense
OPS: dict[str, tuple[str, Call, Call, bool, bool]] = {
    "plain_dense": ("dense", _dense, _dense_reference, True, True),
    "plain_exact": ("exact", _exact, _exact_reference, True, True),
    "plain_predicted": ("predicted", _predicted, _predicted_reference, False, False),
    "linear_active": ("predicted", _first, _first_reference, False, False),
    "axpy_active": ("exact", _axpy, _axpy_reference, False, False),
}


def plain(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """The whole FFN dense, exact and over exactly the active neurons, and the second half alone."""
    neurons, hidden = config.neurons, config.hidden
    maker, nbytes = MatrixMaker(fmt), 2 * neurons * bytes_per_row(fmt, hidden)
    copies = copies_of(nbytes)
    maker.expect(copies * nbytes)
    layers = [(make_gate(maker, neurons, hidden), make_down(maker, neurons, hidden)) for _ in range(copies)]
    shift = shift_of(replace(config, activation=RELU), sparsity)
    inputs = normal(INPUTS, 1, hidden)
    inputs[:, 0, 0] = shift
    tokens = [[_token(x, gate) for x in inputs] for gate, _ in layers]
    clear = _token(clear_input(layers[0][0], RELU, shift), layers[0][0])
    tallies = {name: new_tally(inputs.device) for name in OPS}

    def call(name: str, copy: int, number: int) -> Tensor:
        return OPS[name][1](tokens[copy][number // copies % INPUTS], *layers[copy], tallies[name])

    def check(name: str) -> None:
        _, op, reference, _, _ = OPS[name]
        expected = reference(clear, *layers[0], new_tally(inputs.device))
        slack = FIXED_POINT if layers[0][0].is_packed else 0.0
        require_close(name, op(clear, *layers[0], new_tally(inputs.device)), expected, hidden + neurons, slack)

    def read(name: str, calls: int) -> float:
        (gate, down), rows = layers[0], (tallies[name].double() / calls).tolist()
        scanned = gate.nbytes if OPS[name][3] else rows[PREDICTED] * gate.row_bytes
        return scanned + rows[DOWN_ROWS] * down.row_bytes

    def sparse(name: str, calls: int) -> float:
        computed = PREDICTED if name == "linear_active" else NONZERO  # it ends before the activation
        return round(1 - float(tallies[name][computed]) / (calls * neurons), 6)

    return {
        name: Op(
            name,
            mode,
            fmt,
            call=in_turn(range(copies), partial(call, name), order / len(OPS)),
            check=partial(check, name),
            distance=distance(copies, nbytes),
            read=partial(read, name),
            sparsity=partial(sparse, name),
            against=("plain_dense", WHOLE) if is_compared else ("none", ""),
        )
        for order, (name, (mode, _, _, _, is_compared)) in enumerate(OPS.items())
    }


def _token(x: Tensor, gate: Weight) -> Token:
    active = gate_select(x, gate, RELU)
    assert active.value is not None
    n, h = int(active.count), torch.zeros(1, gate.shape[0])
    return Token(x, active, h.index_copy_(1, active.index[:n].long(), active.value[:, :n]))
