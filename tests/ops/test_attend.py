"""attend on every backend against float64."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import EPS, LAMBDA
from torch import Tensor

from prosparse.kernels.attend import attend, visible

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# rows, heads, kv_heads, head_dim, start: odd sizes, no sharing, one key head, block borders (256), many blocks
SHAPES = [
    (1, 6, 2, 64, 0),
    (1, 6, 2, 64, 200),
    (1, 3, 3, 10, 255),
    (1, 4, 1, 6, 256),
    (1, 40, 2, 2, 37),
    (3, 6, 3, 18, 254),
    (16, 2, 1, 128, 511),
    (2, 8, 8, 34, 1000),
]


def make_case(rows, heads, kv_heads, head_dim, start, dtype, seed=0):
    """Queries, and keys and values as views of a longer cache whose rest is NaN."""
    rng = torch.Generator().manual_seed(seed)
    cache = torch.full((2, kv_heads, start + rows + 5, head_dim), float("nan"), dtype=dtype)
    cache[:, :, : start + rows] = torch.randn(2, kv_heads, start + rows, head_dim, generator=rng).to(dtype)
    q = 2 * torch.randn(rows, heads, head_dim, generator=rng)
    return q, cache[0, :, : start + rows], cache[1, :, : start + rows]


def meaning(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int) -> tuple[Tensor, Tensor]:
    """The float64 result, and how far rounding in fp32 may lead from it."""
    rows, heads, head_dim = q.shape
    group = heads // keys.shape[0]
    keys, values = (t.double().repeat_interleave(group, 0) for t in (keys, values))
    query = q.double().transpose(0, 1)
    scores = query @ keys.transpose(1, 2) / math.sqrt(head_dim)
    # A score off by d changes its weight by a factor e^d, and the sum it is divided by as much at most.
    size = query.abs() @ keys.abs().transpose(1, 2) / math.sqrt(head_dim)
    off = (LAMBDA * math.sqrt(head_dim) * EPS / 2 + 2 * EPS) * size.amax(-1, keepdim=True)
    weights = scores.masked_fill(~visible(rows, start, keys.shape[1], window, q.device), -math.inf).softmax(-1)
    rounding = LAMBDA * math.sqrt(keys.shape[1]) * EPS / 2 + 8 * EPS
    out, bound = weights @ values, (2 * off + rounding) * (weights @ values.abs())
    return tuple(t.transpose(0, 1).reshape(rows, -1) for t in (out, bound))


@pytest.mark.parametrize("window", [None, 1, 30, 256, 400])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, dtype, window):
    q, keys, values = make_case(*shape, dtype)
    expected, bound = meaning(q, keys, values, shape[-1], window or 0)
    error = (attend(q, keys, values, shape[-1], window).double() - expected).abs()
    assert bool((error <= bound).all()), f"worst error is {float((error / bound).max()):.2f} of its bound"


def test_depends_neither_on_threads_nor_on_other_rows(compiled, threads):
    q, keys, values = make_case(4, 6, 2, 64, 600, torch.bfloat16)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results += [attend(q, keys, values, 600) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    for row in range(4):
        end = 601 + row
        alone = attend(q[row : row + 1], keys[:, :end], values[:, :end], 600 + row)
        assert torch.equal(alone[0], results[0][row])


def test_large_scores_neither_overflow_nor_vanish(backend):
    q, keys, values = make_case(1, 2, 1, 16, 299, torch.float32)
    sharp = attend(1e4 * q, keys, values, 299)
    for head in range(2):
        best = int((keys[0] @ q[0, head]).argmax())
        assert torch.allclose(sharp.view(2, 16)[head], values[0, best], rtol=1e-5, atol=1e-5)
    even = attend(torch.zeros_like(q), keys, values, 299)
    assert torch.allclose(even.view(2, 16), values[0].mean(0).expand(2, 16), rtol=1e-4, atol=1e-5)


def test_a_nan_key_is_seen_only_by_who_sees_its_position(backend):
    q, keys, values = make_case(3, 2, 1, 8, 300, torch.float32)
    keys[0, 301] = float("nan")
    out = attend(q, keys, values, 300)
    assert bool(out[0].isfinite().all()) and bool(out[1:].isnan().all())
    assert bool(attend(q, keys, values, 300, window=1)[2].isfinite().all())


def test_a_nan_value_is_not_read_by_who_does_not_see_its_position(compiled):  # the reference multiplies it by 0
    q, keys, values = make_case(3, 2, 1, 8, 300, torch.float32)
    values[0, 301] = float("nan")
    out = attend(q, keys, values, 300)
    assert bool(out[0].isfinite().all()) and bool(out[1:].isnan().all())


def test_names_what_does_not_fit():
    q, keys, values = make_case(2, 6, 2, 8, 5, torch.float32)
    with pytest.raises(ValueError, match=r"attend: q \(2, 6, 8\) at start 4 does not fit keys \(2, 7, 8\)"):
        attend(q, keys, values, 4)
    with pytest.raises(ValueError, match="attend: q must be float32"):
        attend(q.half(), keys, values, 5)
    with pytest.raises(ValueError, match="one float dtype"):
        attend(q, keys, values.half(), 5)
    with pytest.raises(ValueError, match="attend: q must be contiguous"):
        attend(q.transpose(1, 2).contiguous().transpose(1, 2), keys, values, 5)
    with pytest.raises(ValueError, match="attend: window must be at least 1 or None, got 0"):
        attend(q, keys, values, 5, window=0)


def test_the_compiled_op_checks_for_itself(compiled):
    q, keys, values = make_case(2, 6, 2, 8, 5, torch.float32)
    for wrong in ((q, keys, values, 6, 0), (q, keys[:, :6], values, 5, 0), (q[:, :5], keys, values, 5, 0)):
        with pytest.raises(RuntimeError, match="^attend: "):
            torch.ops.prosparse.attend(*(t.contiguous() if isinstance(t, Tensor) else t for t in wrong))


def test_opcheck(backend):
    q, keys, values = make_case(2, 4, 2, 8, 5, torch.bfloat16)
    torch.library.opcheck(torch.ops.prosparse.attend, (q, keys, values, 5, 3))
