"""decode_layers is its parts, one after the other; those are tested against float64, and it is tested against them."""

from __future__ import annotations

import pytest
import torch
from layer_cases import EPS, SIZES, make

from prosparse.kernels.activation import Activation
from prosparse.kernels.attend import attend
from prosparse.kernels.decode_layers import DecodeLayers
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.glu_predicted import glu_predicted
from prosparse.kernels.guess import Guess
from prosparse.kernels.linear import linear
from prosparse.kernels.predict_select import pack_signs
from prosparse.kernels.rms_norm import rms_norm
from prosparse.kernels.rotary_store import rotary_store
from prosparse.kernels.tally import PREDICTED, new_tally
from prosparse.kernels.weight import in_format

FORMATS = ["fp32", "bf16", "int8", "int4"]


def parts(residual, made, scale, window, keys, values, cos, sin, slots, starts, tally):
    """The same step, op by op."""
    rows = residual.shape[0] // len(slots)
    for i, layer in enumerate(made):
        x = linear(rms_norm(residual, layer.norm, EPS), layer.qkv)
        x = x if layer.qkv_bias is None else x + layer.qkv_bias
        attended = []
        for s, (slot, start) in enumerate(zip(slots, starts, strict=True)):
            new, end = slice(s * rows, (s + 1) * rows), start + rows
            k, v = keys[i, slot, :, :end], values[i, slot, :, :end]
            q = rotary_store(x[new].contiguous(), cos[new].contiguous(), sin[new].contiguous(), k, v, start)
            attended.append(attend(q, k, v, start, window))
        residual = torch.add(residual, linear(torch.cat(attended), layer.o), alpha=scale)
        ffn = layer.ffn
        x = rms_norm(residual, ffn.norm, EPS)
        if ffn.guess is not None:
            listed = ffn.guess.select(residual, x)
            y = glu_predicted(x, ffn.gate, ffn.up, ffn.down, listed, ffn.activation, tally[i])
        else:
            glu = glu_dense if ffn.dense else glu_exact
            y = glu(x, ffn.gate, ffn.up, ffn.down, ffn.activation, tally[i])
        residual = torch.add(residual, y, alpha=scale)
    return residual


def run(sizes, fmt, dense, slots, starts, rows=1, scale=1.0, window=None, **how):
    """(the op, its parts), each as residual, keys, values, tally."""
    made, keys, values = make(sizes, fmt, dense, **how)
    rng = torch.Generator().manual_seed(1)
    tokens, half = len(slots) * rows, sizes[3] // 2
    residual, angle = torch.randn(tokens, sizes[0], generator=rng), torch.randn(tokens, half, generator=rng)
    results = []
    for whole in (True, False):
        k, v, tally = keys.clone(), values.clone(), new_tally(torch.device("cpu"), len(made))
        where = (k, v, angle.cos(), angle.sin(), slots, starts, tally)
        if whole:
            out = DecodeLayers(made, EPS, scale, window)(residual, *where)
        else:
            out = parts(residual, made, scale, window, *where)
        results.append((out, k, v, tally))
    return results


def assert_same_bits(results):
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dense", [(True, True), (False, False), (True, False)], ids=str)
def test_has_the_bits_of_its_parts(compiled, sizes, fmt, dense):
    assert_same_bits(run(sizes, fmt, dense, slots=(1,), starts=(7,)))


@pytest.mark.parametrize("fmt", ["bf16", "int4"])
def test_sequences_rows_bias_and_window(compiled, fmt):
    how = {"slots": (2, 0), "starts": (3, 8), "rows": 3, "window": 5, "bias": True}
    assert_same_bits(run(SIZES[1], fmt, (False, True), **how))


@pytest.mark.parametrize(
    "activation", [Activation("fatrelu", 0.3), Activation("relu2"), Activation("relu", on_up=True)]
)
def test_activations(compiled, activation):
    assert_same_bits(run(SIZES[0], "int8", (False, False), slots=(0,), starts=(0,), activation=activation))


def signs(gate, rng):
    return Guess(torch.zeros(gate.shape[0]), pack_signs(gate.values()))


def low_bit(gate, rng):
    return Guess(torch.full((gate.shape[0],), 0.1), in_format(gate.values(), "int4"))


def low_rank(relu, un_normed, fmt):
    def make_guess(gate, rng):
        neurons, hidden = gate.shape
        first = in_format(torch.randn(20, hidden, generator=rng), fmt)
        second = in_format(torch.randn(neurons, 20, generator=rng), fmt)
        return Guess(torch.zeros(neurons), second, first, relu, un_normed)

    return make_guess


GUESSES = {
    "signs": signs,
    "low_bit": low_bit,
    "low_rank": low_rank(False, False, "bf16"),
    "mlp": low_rank(True, False, "int8"),
    "mlp_of_residual": low_rank(True, True, "fp32"),
}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("guess", GUESSES)
def test_predicted_layers_have_the_bits_of_their_parts(compiled, sizes, fmt, guess):
    results = run(sizes, fmt, (False, False), slots=(1, 0), starts=(7, 2), rows=2, guess=GUESSES[guess])
    assert_same_bits(results)
    predicted = results[0][3][:, PREDICTED]
    assert bool((0 < predicted).all()) and bool((predicted <= sizes[4]).all())


def test_exact_and_dense_layers_among_predicted_ones(compiled):
    results = run(SIZES[0], "bf16", (False, True), slots=(1,), starts=(7,), guess=low_rank(True, True, "int4"))
    assert_same_bits(results)
    assert results[0][3][1, PREDICTED] == 0


def test_the_scale_of_the_add(compiled):
    """PyTorch may add with one rounding or with two."""
    ours, theirs = run(SIZES[1], "bf16", (False, False), slots=(1,), starts=(7,), scale=0.3)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guess", [None, *GUESSES])
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_backend_agrees(backend, fmt, guess):
    how = {"slots": (2, 0), "starts": (3, 8), "rows": 2, "bias": True, "guess": GUESSES.get(guess)}
    ours, theirs = run(SIZES[1], fmt, (False, True), **how)
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-3, atol=2e-3)
    assert torch.equal(ours[3], theirs[3])


def test_threads_do_not_change_a_bit(compiled, threads):
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(run((64, 4, 2, 16, 700), "int4", (False, True), slots=(0, 1), starts=(4, 9))[0][0])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_only_the_new_positions_of_the_cache_change(compiled):
    made, keys, values = make(SIZES[0], "bf16", (False, False))
    k, v, half = keys.clone(), values.clone(), SIZES[0][3] // 2
    angle = torch.zeros(2, half)
    step = DecodeLayers(made, EPS, 1.0, None)
    step(torch.ones(2, SIZES[0][0]), k, v, angle, angle, (1,), (4,), new_tally(torch.device("cpu"), 2))
    for before, after in ((keys, k), (values, v)):
        changed = (before != after).any(-1).any(2).any(0)  # [slots, context]
        assert not changed[0].any() and not changed[2].any() and changed[1].nonzero().flatten().tolist() == [4, 5]


def test_says_what_is_wrong(compiled):
    made, keys, values = make(SIZES[0], "bf16", (False, False))
    step, half = DecodeLayers(made, EPS, 1.0, None), SIZES[0][3] // 2
    x, angle, tally = torch.ones(1, SIZES[0][0]), torch.zeros(1, half), new_tally(torch.device("cpu"), 2)
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        step(x.expand(17, -1).contiguous(), keys, values, angle, angle, (0,), (0,), tally)
    for slots, starts in [((3,), (0,)), ((-1,), (0,)), ((0,), (12,)), ((0,), (-1,))]:
        with pytest.raises(RuntimeError, match="is outside a cache of 3 slots of 12"):
            step(x, keys, values, angle, angle, slots, starts, tally)
    with pytest.raises(RuntimeError, match="keys and values must agree, for 2 layers"):
        step(x, keys[:1], values[:1], angle, angle, (0,), (0,), tally)
    with pytest.raises(RuntimeError, match="cos must hold 8 contiguous"):
        step(x, keys, values, angle[:, :3].contiguous(), angle, (0,), (0,), tally)
    with pytest.raises(RuntimeError, match=r"tally must be contiguous \[layers, 4\]"):
        step(x, keys, values, angle, angle, (0,), (0,), tally[:1])
    with pytest.raises(ValueError, match="all or none must"):
        DecodeLayers([made[0], make(SIZES[0], "bf16", (False, False), bias=True)[0][1]], EPS, 1.0, None)
    other = make(SIZES[0], "bf16", (False, False), activation=Activation("relu2"))[0][1]
    with pytest.raises(ValueError, match="must share an activation"):
        DecodeLayers([made[0], other], EPS, 1.0, None)
