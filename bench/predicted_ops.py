"""The ops of predicted FFNs for the "ops" subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_predicted import glu_predicted, glu_predicted_reference
from prosparse.kernels.predict_select import (
    pack_signs,
    predict_select,
    predict_select_reference,
    sign_select,
    sign_select_reference,
)
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, PREDICTED, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight, bytes_per_row
from prosparse.weights.synthetic import MatrixMaker

from .check import FIXED_POINT, clear_input, require_close
from .cold import copies_of, distance, in_turn
from .ffn import INPUTS, Layer, make_layer, shift_of
from .op_cases import Op, normal

RANK = 128  # of PowerInfer's predictors for MiniCPM-S, by the size of its file


def predicted(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """A low-rank guess's larger matrix, a guess from signs, and an FFN over exactly the active neurons."""
    neurons, hidden, activation = config.neurons, config.hidden, config.activation
    maker, nbytes = MatrixMaker(fmt), 3 * neurons * bytes_per_row(fmt, hidden)
    second_nbytes = neurons * bytes_per_row(fmt, RANK)
    copies, second_copies = copies_of(nbytes), copies_of(second_nbytes)
    maker.expect(copies * nbytes + second_copies * second_nbytes)
    layers = [make_layer(maker, neurons, hidden) for _ in range(copies)]
    seconds = [maker.matrix(neurons, RANK, RANK**-0.5) for _ in range(second_copies)]
    signs = pack_signs(layers[0][0].values())
    all_signs = [signs.clone() for _ in range(copies_of(signs.nbytes))]
    inputs, z, offset = normal(INPUTS, 1, hidden), normal(1, RANK), torch.zeros(neurons)
    inputs[:, 0, 0] = shift_of(config, sparsity)
    clear = clear_input(layers[0][0], activation, shift_of(config, sparsity))
    lists = [[gate_select(x, gate, activation) for x in inputs] for gate, _, _ in layers]
    tally = new_tally(inputs.device)

    def whole(pair: tuple[Layer, list[ActiveNeurons]], number: int) -> Tensor:
        at = number // copies % INPUTS
        return glu_predicted(inputs[at], *pair[0], pair[1][at], activation, tally)

    def check_whole() -> None:
        (gate, up, down), named = layers[0], gate_select(clear, layers[0][0], activation)
        parts = (activation.code, activation.threshold, activation.on_up, new_tally(clear.device))
        codes = (gate.codes, up.codes, down.codes, named.index, named.count)
        expected = glu_predicted_reference(clear, *codes, *parts)
        actual = glu_predicted(clear, gate, up, down, named, activation, new_tally(clear.device))
        require_close("glu_predicted", actual, expected, hidden + neurons, FIXED_POINT if gate.is_packed else 0.0)

    def read(calls: int) -> float:
        rows, (gate, up, down) = (tally.double() / calls).tolist(), layers[0]
        done = ((PREDICTED, gate), (UP_ROWS, up), (DOWN_ROWS, down))
        return sum(rows[at] * weight.row_bytes for at, weight in done)

    op = Op(
        "glu_predicted",
        "predicted",
        fmt,
        call=in_turn(list(zip(layers, lists, strict=True)), whole),
        check=check_whole,
        distance=distance(copies, nbytes),
        read=read,
        sparsity=lambda calls: round(1 - float(tally[NONZERO]) / (calls * neurons), 6),
        against=("none", ""),
    )
    second = replace(
        op,
        subject="predict_select",
        part=f"rank {RANK}",
        call=in_turn(seconds, lambda weight, _: predict_select(z, weight, offset)),
        check=partial(_check_named, "predict_select", predict_select, predict_select_reference, z, seconds[0], offset),
        distance=distance(second_copies, second_nbytes),
        read=lambda calls: second_nbytes + offset.nbytes,
        sparsity=_none,
    )
    sign = replace(
        second,
        subject="sign_select",
        part=None,
        weights="signs",
        call=in_turn(all_signs, lambda own, _: sign_select(inputs[0], own, offset)),
        check=partial(_check_named, "sign_select", sign_select, sign_select_reference, inputs[0], signs, offset),
        distance=distance(len(all_signs), signs.nbytes),
        read=lambda calls: signs.nbytes + offset.nbytes,
    )
    return {"whole": op, "second": second, "signs": sign}


def _none(calls: int) -> None:
    """A guess has no activation sparsity."""


def _check_named(
    name: str,
    op: Callable[..., ActiveNeurons],
    reference: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    matrix: Weight | Tensor,
    offset: Tensor,
) -> None:
    """Both must name the same neurons, but for scores that rounding moves over 0."""
    codes = matrix.codes if isinstance(matrix, Weight) else matrix
    actual, (index, count) = op(x, matrix, offset), reference(x, codes, offset)
    found, expected = torch.zeros(2, offset.numel())
    found[actual.index[: int(actual.count)].long()] = 1
    expected[index[: int(count)].long()] = 1
    require_close(name, found, expected, 1, 0.05 if isinstance(matrix, Weight) else 0.0)
