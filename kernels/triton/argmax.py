"""Greedy choice on the device: the token that `engine.sampler` chooses where it is greedy, without a host sync.

A logit and its id become one integer that compares as the sampler does: NaN above everything, then by value, zeros of
both signs alike, then the lower id first. So the order in which programs finish does not matter. A row is cut into
spans, and a second launch takes the largest of theirs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import SPAN

LAST_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def span_kernel(logits_ptr, key_ptr, stride, vocab, SPAN: tl.constexpr):
    """The largest key of a span."""
    row, span = tl.program_id(0), tl.program_id(1)
    token = span * SPAN + tl.arange(0, SPAN)
    x = tl.load(logits_ptr + row.to(tl.int64) * stride + token, mask=token < vocab, other=-float("inf"))
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats descend as integers
    bits = tl.where(x != x, 0x7FFFFFFF, bits)
    key = bits.to(tl.int64) * 4294967296 + (LAST_ID - token)
    tl.store(key_ptr + row * tl.num_programs(1) + span, tl.max(key, axis=0))


@triton.jit
def argmax_kernel(logits_ptr, key_ptr, token_ptr, top_ptr, stride, spans, SPANS: tl.constexpr):
    row = tl.program_id(0)
    span = tl.arange(0, SPANS)
    keys = tl.load(key_ptr + row * spans + span, mask=span < spans, other=-0x7FFFFFFFFFFFFFFF)
    token = LAST_ID - (tl.max(keys, axis=0) & 0xFFFFFFFF)
    tl.store(token_ptr + row, token)
    tl.store(top_ptr + row, tl.load(logits_ptr + row.to(tl.int64) * stride + token))


def launch(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The greedy token of each row, and its logit, by which the host can tell later that a row was not finite.

    Args:
        logits: [rows, vocab] float32; rows contiguous.

    Returns:
        tokens [rows] int64 and their logits [rows] float32: as `logits.max(dim=-1)` on the CPU, a NaN or +inf included.
    """
    rows, vocab = logits.shape
    spans = triton.cdiv(vocab, SPAN)
    keys = logits.new_empty(rows, spans, dtype=torch.int64)
    tokens, top = keys.new_empty(rows), logits.new_empty(rows)
    span_kernel[(rows, spans)](logits, keys, logits.stride(0), vocab, SPAN=SPAN, num_warps=4)
    argmax_kernel[(rows,)](
        logits, keys, tokens, top, logits.stride(0), spans, SPANS=triton.next_power_of_2(spans), num_warps=1
    )
    return tokens, top
