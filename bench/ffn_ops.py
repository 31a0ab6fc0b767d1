"""The ops of the FFN and of whole layers for the "ops" subject: each reads what its active neurons need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prosparse.config import ModelConfig
from prosparse.engine.load import assemble
from prosparse.kernels import cpu
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.decode_layers import DecodeLayers, decode_layers_reference
from prosparse.kernels.gate_select import gate_select, gate_select_reference
from prosparse.kernels.glu_active import glu_active, glu_active_reference
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS, new_tally
from prosparse.kernels.weight import bytes_per_row
from prosparse.model.cache import KVCache
from prosparse.placement import choose
from prosparse.weights.synthetic import MatrixMaker, synthetic_weights, walk, weight_bytes

from . import probe
from .check import FIXED_POINT, FLIPS, OPS, check_ffn, clear_input, require_close, require_same_logits
from .cold import copies_of, distance, in_turn
from .ffn import INPUTS, Layer, make_layer, shift_of
from .modes import gated_blocks, in_mode
from .op_cases import Op, cache_dtype, normal

WHOLE = "glu_dense over the same weights in the same run"
DENSE_LAYERS = "dense layers over the same weights in the same run"


def ffn(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`glu_dense`, `glu_exact`, and the two halves of the latter, over the same copies of one layer."""
    maker, nbytes = MatrixMaker(fmt), 3 * config.neurons * bytes_per_row(fmt, config.hidden)
    copies = copies_of(nbytes)
    maker.expect(copies * nbytes)
    layers = [make_layer(maker, config.neurons, config.hidden) for _ in range(copies)]
    gate, up, down = layers[0]
    activation, shift = config.activation, shift_of(config, sparsity)
    inputs = normal(INPUTS, 1, config.hidden)
    inputs[:, 0, 0] = shift
    clear = clear_input(gate, activation, shift)
    # the two halves take the list of one layer for all: their weights are cold, which neurons those are does not matter
    active = [gate_select(x, gate, activation) for x in inputs]
    tallies = {name: new_tally(inputs.device) for name in ("dense", "exact", "active")}

    def whole(mode: str) -> Callable[[Layer, int], Tensor]:
        return lambda layer, number: OPS[mode](inputs[number // copies % INPUTS], *layer, activation, tallies[mode])

    def select(layer: Layer, number: int) -> ActiveNeurons:
        return gate_select(inputs[number // copies % INPUTS], layer[0], activation)

    def compute(layer: Layer, number: int) -> Tensor:
        at = number // copies % INPUTS
        return glu_active(inputs[at], layer[1], layer[2], active[at], activation, tallies["active"])

    def read(name: str, scans: bool) -> Callable[[int], float]:
        def per_call(calls: int) -> float:
            rows = tallies[name].double() / calls
            scanned = gate.nbytes if scans else 0
            return scanned + float(rows[UP_ROWS]) * up.row_bytes + float(rows[DOWN_ROWS]) * down.row_bytes

        return per_call

    def sparse(name: str) -> Callable[[int], float | None]:
        return lambda calls: round(1 - float(tallies[name][NONZERO]) / (calls * config.neurons), 6)

    def op(subject: str, mode: str, call: Callable[[Layer, int], object], order: int, **more: object) -> Op:
        turn = in_turn(layers, call, order / 4)
        return Op(subject, mode, fmt, turn, distance=distance(copies, nbytes), **{"against": ("dense", WHOLE), **more})  # type: ignore[arg-type]

    return {
        **{
            mode: op(
                f"glu_{mode}",
                mode,
                whole(mode),
                order,
                check=partial(check_ffn, mode, gate, up, down, activation, clear),
                read=read(mode, True),
                sparsity=sparse(mode),
            )
            for order, mode in enumerate(OPS)
        },
        "select": op(
            "gate_select",
            "exact",
            select,
            2,
            check=lambda: _check_select(clear, layers[0], config),
            read=lambda calls: gate.nbytes,
            against=("none", ""),
        ),
        "active": op(
            "glu_active",
            "exact",
            compute,
            3,
            check=lambda: _check_active(clear, layers[0], config),
            read=read("active", False),
            sparsity=sparse("active"),
            against=("none", ""),
        ),
    }


def _check_select(x: Tensor, layer: Layer, config: ModelConfig) -> None:
    gate, activation = layer[0], config.activation
    expected = _spread(*gate_select_reference(x, gate.codes, activation.code, activation.threshold))
    actual = gate_select(x, gate, activation)
    assert actual.value is not None
    slack = FIXED_POINT if gate.is_packed else 0.0
    require_close("gate_select", _spread(actual.index, actual.count, actual.value), expected, config.hidden, slack)


def _spread(index: Tensor, count: Tensor, value: Tensor) -> Tensor:
    """Gate values at the places of their neurons, so that a wrong list shows."""
    n = int(count)
    return torch.zeros_like(value).index_copy_(1, index[:n].long(), value[:, :n])


def _check_active(x: Tensor, layer: Layer, config: ModelConfig) -> None:
    gate, up, down = layer
    active = gate_select(x, gate, config.activation)
    assert active.value is not None
    parts = (active.index, active.count, active.value, config.activation.on_up)
    expected = glu_active_reference(x, up.codes, down.codes, *parts, new_tally(x.device))
    actual = glu_active(x, up, down, active, config.activation, new_tally(x.device))
    slack = FIXED_POINT if up.is_packed else 0.0
    require_close("glu_active", actual, expected, config.hidden + config.neurons, slack)


def layers(config: ModelConfig, fmt: str, sparsity: float, context: int) -> dict[str, Op]:
    """`decode_layers` over as many layers as no cache holds, dense and exact, at the end of a full cache."""
    small = dataclasses.replace(config, vocab=1024)
    one, two = (weight_bytes(dataclasses.replace(small, layers=n), fmt) for n in (1, 2))
    small = dataclasses.replace(small, layers=min(config.layers, -(-probe.BUFFER_BYTES // (two - one))))
    tensors, _ = synthetic_weights(small, fmt, sparsity)
    decoder = assemble(small, tensors, choose(small, "dense"), context)
    start, tokens = context - 1, walk(small.vocab, INPUTS)
    cos, sin = decoder.rope.cos[start:], decoder.rope.sin[start:]
    residuals = tensors.embed.rows_of(tokens).mul_(small.embed_scale).split(1)
    cache = KVCache(small, 1, context, cache_dtype(fmt), decoder.device)
    cache.keys.copy_(normal(context, small.head_dim))
    cache.values.copy_(normal(context, small.head_dim))
    tallies = {mode: new_tally(decoder.device, small.layers) for mode in OPS}
    blocks = {mode: gated_blocks(in_mode(decoder, mode)) for mode in OPS}
    stacks = {
        mode: DecodeLayers(
            [attention.with_ffn(ffn.glu()) for attention, ffn in own], small.norm_eps, small.residual_scale, None
        )
        for mode, own in blocks.items()
    }

    def step(mode: str, number: int, tally: Tensor) -> Tensor:
        return stacks[mode](residuals[number % INPUTS], cache.keys, cache.values, cos, sin, (0,), (start,), tally)

    def timed(mode: str, number: int) -> Tensor:
        return step(mode, number, tallies[mode])

    def sparse(mode: str, calls: int) -> float:
        return round(1 - float(tallies[mode][:, NONZERO].sum()) / (calls * small.layers * small.neurons), 6)

    def check(mode: str) -> None:
        own, activation = stacks[mode], small.activation
        how = (own.weights, own.biases, own.guess_tensors, own.guesses, own.dense)
        copy = (cache.keys.clone(), cache.values.clone(), cos, sin, [0], [start], own.window, own.eps, own.scale)
        spare = new_tally(decoder.device, small.layers)
        parts = (activation.code, activation.threshold, activation.on_up, spare)
        expected = decode_layers_reference(residuals[0], *how, *copy, *parts)
        actual = step(mode, 0, spare)
        require_close(f"decode_layers, {mode},", actual, expected, small.hidden + small.neurons, FLIPS)
        if cpu.available():
            require_same_logits(f"decode_layers, {mode},", actual, step("dense", 0, spare))

    attended = sum(a.qkv.nbytes + a.o.nbytes for a, _ in blocks["dense"])
    cached = 2 * small.layers * small.kv_heads * context * small.head_dim * cache.keys.element_size()

    def read(mode: str) -> Callable[[int], float]:
        def per_call(calls: int) -> float:
            done = zip(blocks[mode], (tallies[mode].double() / calls).tolist(), strict=True)
            return attended + cached + sum(ffn.bytes_read(1, d) for (_, ffn), d in done)

        return per_call

    held = sum(f.gate.nbytes + f.up.nbytes + f.down.nbytes for _, f in blocks["dense"]) + attended
    return {
        mode: Op(
            "decode_layers",
            mode,
            fmt,
            call=partial(timed, mode),
            check=partial(check, mode),
            distance=held + distance(1, 0),
            read=read(mode),
            layers=small.layers,
            sparsity=partial(sparse, mode),
            against=("dense", DENSE_LAYERS),
        )
        for mode in OPS
    }
