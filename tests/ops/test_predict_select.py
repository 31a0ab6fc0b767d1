"""predict_select and sign_select on every backend of this machine against their float64 meaning."""

from __future__ import annotations

import pytest
import torch
from cases import LAYERS, PACKED, label, make_case, product

from prosparse.kernels.guess import Guess
from prosparse.kernels.predict_select import pack_signs, predict_select, sign_select, unpack_signs
from prosparse.kernels.weight import Weight

NAN, INF = float("nan"), float("inf")
SIGNED = [(1, 1, 1), (2, 63, 17), (1, 64, 40), (3, 65, 50), (16, 96, 33), (1, 576, 1025)]


def ids_of(active) -> list[int]:
    assert active.value is None
    return active.index[: int(active.count)].tolist()


@pytest.mark.parametrize(("weights", "shape"), LAYERS, ids=label)
def test_names_what_float64_names(backend, weights, shape):
    case = make_case(*shape, weights, padding=16)
    offset = torch.linspace(-6, 1, shape[2])
    score = product(case.x, case.gate)
    total, slack = score.value + offset.double(), score.error + 1e-6
    found = ids_of(predict_select(case.x, case.gate, offset))
    assert found == sorted(found)
    sure = (total - slack > 0).any(0)
    never = (total + slack < 0).all(0)
    assert set(sure.nonzero().flatten().tolist()) <= set(found)
    assert not set(never.nonzero().flatten().tolist()) & set(found)
    assert shape[2] < 30 or (bool(sure.any()) and bool(never.any()))


@pytest.mark.parametrize("shape", SIGNED, ids=str)
@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16], ids=label)
def test_counts_signs_exactly(backend, shape, x):
    case = make_case(*shape, torch.float32, x)
    case.x[0, 0] = -0.0
    gate = case.gate.values()
    agreeing = (case.x.signbit()[:, None] == gate.signbit()[None]).sum(-1)
    score = 2 * agreeing - shape[1]
    offset = -score.float().quantile(0.7).round().expand(shape[2]).clone()
    expected = (score + offset >= 0).any(0).nonzero().flatten().tolist()
    assert ids_of(sign_select(case.x, pack_signs(gate), offset)) == expected and expected


@pytest.mark.parametrize("shape", SIGNED, ids=str)
def test_packed_signs_come_back(shape):
    gate = make_case(*shape, torch.float32).gate.values()
    packed = pack_signs(gate)
    assert packed.shape == (shape[2], -(-shape[1] // 64))
    assert torch.equal(unpack_signs(packed, shape[1]) < 0, gate.signbit())


@pytest.mark.parametrize("select", ["rows", "signs"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_nothing_everything_and_nan(backend, select, tokens):
    case = make_case(tokens, 70, 530)
    second = pack_signs(case.gate.values()) if select == "signs" else case.gate
    op = sign_select if select == "signs" else predict_select
    everything = list(range(530))
    assert ids_of(op(case.x, second, torch.full((530,), -INF))) == []
    assert ids_of(op(case.x, second, torch.full((530,), INF))) == everything
    assert ids_of(op(case.x, second, torch.full((530,), NAN))) == everything
    one = torch.full((530,), -INF)
    one[417] = INF
    assert ids_of(op(case.x, second, one)) == [417]


@pytest.mark.parametrize("weights", [torch.bfloat16, *PACKED], ids=label)
def test_a_nan_token_names_all(backend, weights):
    case = make_case(2, 140, 40, weights)
    case.x[1, 3] = NAN
    assert ids_of(predict_select(case.x, case.gate, torch.full((40,), -1e9))) == list(range(40))


@pytest.mark.parametrize("select", ["rows", "signs"])
def test_threads_and_neighbours_do_not_change_the_set(compiled, threads, select):
    case = make_case(5, 170, 530)
    offset = torch.zeros(530) if select == "rows" else torch.full((530,), -20.0)
    guess = Guess(offset, case.gate if select == "rows" else pack_signs(case.gate.values()))
    torch.set_num_threads(1)
    together = ids_of(guess.select(case.x, case.x))
    torch.set_num_threads(3)
    assert ids_of(guess.select(case.x, case.x)) == together
    alone = [ids_of(guess.select(x[None].contiguous(), x[None].contiguous())) for x in case.x]
    assert sorted(set().union(*alone)) == together


def test_scores_say_what_select_lists(backend):
    case = make_case(4, 96, 200)
    first = make_case(4, 96, 24, seed=3).gate
    second = make_case(4, 24, 200, seed=4).gate
    offset = torch.linspace(-0.5, 0.5, 200)
    for relu in (False, True):
        for un_normed in (False, True):
            guess = Guess(offset, second, first, relu, un_normed)
            residual = 3 * case.x + 1
            named = ~(guess.scores(residual, case.x) < 0)
            assert ids_of(guess.select(residual, case.x)) == named.any(0).nonzero().flatten().tolist()
            z = (residual if un_normed else case.x) @ first.values().T
            plain = (z.relu() if relu else z) @ second.values().T + offset
            torch.testing.assert_close(guess.scores(residual, case.x), plain, rtol=1e-4, atol=1e-4)


def test_says_what_is_wrong(backend):
    case = make_case(2, 64, 40)
    signs = pack_signs(case.gate.values())
    with pytest.raises(ValueError, match="predict_select: columns is 63 in x but 64 in weight"):
        predict_select(case.x[:, :63].contiguous(), case.gate, torch.zeros(40))
    with pytest.raises(ValueError, match="predict_select: neurons is 40 in weight but 39 in offset"):
        predict_select(case.x, case.gate, torch.zeros(39))
    with pytest.raises(ValueError, match="sign_select: x has 17 tokens, this op takes 1 to 16"):
        sign_select(case.x.new_zeros(17, 64), signs, torch.zeros(40))
    with pytest.raises(ValueError, match="sign_select: signs has 1 words a neuron, but 65 columns take 2"):
        sign_select(torch.zeros(1, 65), signs, torch.zeros(40))
    with pytest.raises(ValueError, match=r"^f: guess has second \(40, 64\), offset \(40,\) and first \(64, 64\)"):
        Guess(torch.zeros(40), case.gate).check_fits("f", 41, 64)


def test_the_compiled_ops_check_what_they_are_given(compiled):
    case = make_case(2, 64, 40)
    signs = pack_signs(case.gate.values())
    with pytest.raises(RuntimeError, match="^predict_select: offset must hold 40 contiguous float32 numbers"):
        torch.ops.prosparse.predict_select(case.x, case.gate.codes, torch.zeros(39))
    with pytest.raises(RuntimeError, match="^predict_select: offset must hold 40 contiguous float32 numbers"):
        torch.ops.prosparse.predict_select(case.x, case.gate.codes, torch.zeros(40).bfloat16())
    with pytest.raises(RuntimeError, match=r"^sign_select: signs must be contiguous \[neurons, 1\] int64"):
        torch.ops.prosparse.sign_select(case.x, torch.zeros(40, 2, dtype=torch.int64), torch.zeros(40))
    with pytest.raises(RuntimeError, match=r"^sign_select: signs must be contiguous \[neurons, 1\] int64"):
        torch.ops.prosparse.sign_select(case.x, signs.int(), torch.zeros(40))


def test_opcheck(backend):
    # every neuron named: entries past count are undefined, and opcheck compares them
    x, offset = torch.ones(2, 8), torch.full((40,), INF)
    torch.library.opcheck(torch.ops.prosparse.predict_select, (x, torch.rand(40, 8), offset))
    torch.library.opcheck(torch.ops.prosparse.sign_select, (x, torch.zeros(40, 1, dtype=torch.int64), offset))


def test_a_guess_knows_its_bytes():
    case = make_case(1, 70, 40)
    assert Guess(torch.zeros(40), pack_signs(case.gate.values())).nbytes == 40 * 4 + 40 * 2 * 8
    first = Weight(torch.zeros(8, 70, dtype=torch.bfloat16))
    second = Weight(torch.zeros(40, 8, dtype=torch.bfloat16))
    assert Guess(torch.zeros(40), second, first).nbytes == 40 * 4 + 8 * 70 * 2 + 40 * 8 * 2
