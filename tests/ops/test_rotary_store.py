"""rotary_store on every backend against float64."""

from __future__ import annotations

import pytest
import torch
from closeness import EPS

from prosparse.kernels.rotary_store import rotary_store, rotary_store_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1, 2, 0), (1, 6, 2, 64, 7), (3, 4, 4, 10, 0), (2, 5, 1, 6, 30), (40, 3, 3, 18, 5)]


def make_case(rows, heads, kv_heads, head_dim, start, dtype=torch.bfloat16):
    """qkv, angles, and views of a longer cache full of a number that tells whether it was overwritten."""
    rng = torch.Generator().manual_seed(0)
    cache = torch.full((2, kv_heads, start + rows + 3, head_dim), 9.0, dtype=dtype)
    angle = 100 * torch.randn(rows, head_dim // 2, generator=rng)
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * head_dim, generator=rng)
    return qkv, angle.cos(), angle.sin(), cache[0, :, : start + rows], cache[1, :, : start + rows], cache


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, dtype):
    rows, heads, kv_heads, head_dim, start = shape
    qkv, cos, sin, keys, values, cache = make_case(*shape, dtype)
    q = rotary_store(qkv, cos, sin, keys, values, start)
    x = qkv.double().view(rows, heads + 2 * kv_heads, head_dim)
    turn = torch.complex(cos.double(), sin.double())[:, None]
    turned = torch.complex(x[..., : head_dim // 2], x[..., head_dim // 2 :]) * turn
    expected = torch.cat((turned.real, turned.imag), -1)
    size = x.abs().amax(-1, keepdim=True)  # of the numbers that a result is the difference of
    assert bool(((q.double() - expected[:, :heads]).abs() <= 2 * EPS * size[:, :heads]).all())
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 0
    stored = keys[:, start:].transpose(0, 1).double()
    bound = 2 * EPS * size[:, heads:-kv_heads] + rounding * expected[:, heads:-kv_heads].abs()
    assert bool(((stored - expected[:, heads:-kv_heads]).abs() <= bound).all())
    assert torch.equal(values[:, start:].transpose(0, 1), x[:, -kv_heads:].to(dtype))
    assert bool(
        (cache[:, :, :start] == 9).all() and (cache[:, :, start + rows :] == 9).all()
    )  # nothing else is touched


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_bit_for_bit(compiled, dtype, rows):
    qkv, *case, cache = make_case(rows, 6, 2, 64, 11)
    _, *other, other_cache = make_case(rows, 6, 2, 64, 11)
    q = rotary_store(qkv.to(dtype), *case, 11)
    assert q.dtype == dtype and torch.equal(q, rotary_store_reference(qkv.to(dtype), *other, 11))
    assert torch.equal(cache, other_cache)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_what_is_rounded_is_turned_in_fp32_and_rounded_again(backend, dtype):
    qkv, *case, cache = make_case(3, 4, 2, 8, 5)
    rounded = qkv.to(dtype)
    expected = rotary_store(rounded.float(), *case, 5).to(dtype)
    held = cache.clone()
    assert torch.equal(rotary_store(rounded, *case, 5), expected) and torch.equal(cache, held)


def test_names_what_does_not_fit():
    qkv, cos, sin, keys, values, _ = make_case(2, 6, 2, 8, 5)
    with pytest.raises(ValueError, match=r"rotary_store: qkv \(2, 80\) at start 4 with angles \(2, 4\) does not fit"):
        rotary_store(qkv, cos, sin, keys, values, 4)
    with pytest.raises(ValueError, match="rotary_store: rows is 2 in qkv but 1 in cos"):
        rotary_store(qkv, cos[:1], sin, keys, values, 5)
    with pytest.raises(ValueError, match="must be of a float dtype"):
        rotary_store(qkv.double(), cos, sin, keys, values, 5)
    with pytest.raises(ValueError, match="the cache of one float dtype"):
        rotary_store(qkv, cos, sin, keys, values.float(), 5)


def test_the_compiled_op_checks_for_itself(compiled):
    qkv, cos, sin, keys, values, _ = make_case(2, 6, 2, 8, 5)
    wrongs = [
        (qkv, cos, sin, keys, values, 6),
        (qkv, cos[:, :3].contiguous(), sin, keys, values, 5),
        (qkv[:, :79].contiguous(), cos, sin, keys, values, 5),
        (qkv, cos, sin, keys[:, :6], values, 5),
    ]
    for wrong in wrongs:
        with pytest.raises(RuntimeError, match="^rotary_store: "):
            torch.ops.prosparse.rotary_store(*wrong)


def test_opcheck(backend):
    *case, _ = make_case(2, 4, 2, 8, 5)
    torch.library.opcheck(torch.ops.prosparse.rotary_store, (*case, 5))
