"""Repairs to Triton's interpreter, so that it computes as a GPU does. `prepare()` it before any kernel runs.

Triton 3.6 and 3.9 keep bf16 as its 16 bits: arithmetic on it is done on integers, and a cast to it truncates. Triton
3.6 also cannot read a loop bound with numpy 2.4, which no longer turns an array of one element into an int.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def widen(handle: TensorHandle) -> TensorHandle:
    """bf16 to fp32, exactly; anything else as it is."""
    if not is_bf16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def round_to_bf16(values: np.ndarray) -> TensorHandle:
    """To nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return TensorHandle(np.where(np.isnan(values), np.uint16(0x7FC0), rounded), tl.bfloat16)


def repair() -> None:
    builder = InterpreterBuilder
    binary_op, unary_op, cast_impl = builder.binary_op, builder.unary_op, builder.cast_impl
    patch_lang_tensor = interpreter._patch_lang_tensor

    def binary(self: Any, left: TensorHandle, right: TensorHandle, op: Any) -> TensorHandle:
        if not (is_bf16(left) or is_bf16(right)):
            return binary_op(self, left, right, op)
        out = op(widen(left).data, widen(right).data)
        return TensorHandle(out, tl.int1) if out.dtype == np.bool_ else round_to_bf16(out)

    def unary(self: Any, value: TensorHandle, op: Any) -> TensorHandle:
        return round_to_bf16(op(widen(value).data)) if is_bf16(value) else unary_op(self, value, op)

    def cast(self: Any, source: TensorHandle, dtype: Any) -> TensorHandle:
        to_bf16 = dtype.scalar == tl.bfloat16
        if is_bf16(source) and not to_bf16:
            wide = widen(source)
            return wide if dtype.scalar == tl.float32 else cast_impl(self, wide, dtype)
        if to_bf16 and not is_bf16(source):
            return round_to_bf16(source.data.astype(np.float32))
        return cast_impl(self, source, dtype)

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    builder.binary_op, builder.unary_op, builder.cast_impl = binary, unary, cast
    interpreter._patch_lang_tensor = patch_tensor


def prepare() -> None:
    """Repair the interpreter, and choose tiles for it: its time goes by operations, whatever their size."""
    repair()
    configs = importlib.import_module("prosparse.kernels.triton.configs")
    configs.ROW_BYTES = dict.fromkeys(configs.ROW_BYTES, 2**20)
    configs.SHORT = 1
    configs.MAX_ROW_TILE = dict.fromkeys(configs.MAX_ROW_TILE, 32)
    overlap = importlib.import_module("prosparse.kernels.triton.overlap")
    # Programs run one after another: there is nothing to wait for, and no cache.
    overlap.gdc_wait = overlap.gdc_launch_dependents = lambda: None
    overlap.ask_l2 = lambda line: None
    configs.DOWN = {fmt: (32, warps, stages) for fmt, (_, warps, stages) in configs.DOWN.items()}
