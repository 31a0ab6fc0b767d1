"""Linears of a transformers model whose weights are rounded to int8 or int4, in place of its own.

A few tokens (decoding) are multiplied with the packed weights as they lie; more are a GEMM with the weights written out
as floats for the moment, which is also where gradients of inputs pass. Of the original weights nothing is kept: they
would take more memory than rounding saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prosparse.kernels import linear  # noqa: F401  importing it registers the op
from prosparse.kernels.checks import FLOAT_DTYPES, MAX_ROWS
from prosparse.kernels.quant import FORMAT, GROUP, dequantize, quantize

from ..errors import UnsupportedError, UserError
from .glu import CHILDREN, OBSERVED, AcceleratedGLU, weights_of


class PackedLinear(nn.Module):
    """What a Linear computes, with rounded weights.

    Args:
        original: the Linear.
        fmt: "int8" or "int4".
        transposed: pack its columns as rows, so that a neuron of a down projection is one row.

    Attributes:
        weight: packed rows, [out_features, row_bytes], or [in_features, row_bytes] if transposed; see `kernels.quant`.
        bias: as the original has it.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, original: nn.Linear, fmt: str, transposed: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.transposed = original.in_features, original.out_features, transposed
        matrix = original.weight.detach()
        self.register_buffer("weight", quantize(matrix.t() if transposed else matrix, fmt))
        self.bias = original.bias
        self.training = original.training

    @property
    def format(self) -> str:
        return FORMAT[self.weight.dtype]

    def forward(self, x: Tensor) -> Tensor:
        """x is [..., in_features]; returns [..., out_features]."""
        flat = x.reshape(-1, x.shape[-1])
        wants_grad = x.requires_grad and torch.is_grad_enabled()
        if self.transposed or wants_grad or not 1 <= len(flat) <= MAX_ROWS or x.dtype not in FLOAT_DTYPES:
            values = self._values(x.dtype)
            y = flat @ values if self.transposed else nn.functional.linear(flat, values)
        else:
            y = torch.ops.prosparse.linear(flat.contiguous(), self.weight)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.format}"

    def _values(self, dtype: torch.dtype) -> Tensor:
        columns = self.out_features if self.transposed else self.in_features
        direct = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
        return dequantize(self.weight, columns, direct).to(dtype)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise UnsupportedError(
            f"state_dict: this model's weights are rounded to {self.format}, which transformers cannot read back; "
            f"`prosparse convert MODEL -o DIR --weights {self.format}` writes a folder for prosparse.load"
        )


class PackedGLU(AcceleratedGLU):
    """A gated FFN whose projections are `PackedLinear`s."""

    def _rows(self) -> list[Tensor]:
        return list(weights_of(self))

    def _runs_on_kernels(self, x: Tensor) -> bool:
        children: Any = self._modules
        for name in OBSERVED:
            child = children.get(name)
            if child is not None and (child._forward_hooks or child._forward_pre_hooks):
                return False
        if x.dtype not in FLOAT_DTYPES or (x.requires_grad and torch.is_grad_enabled()):
            return False
        if not self.computes_as_found() or self.training and self.has_dropout:
            return False
        return all(
            type(children[name]) is PackedLinear and children[name].weight.device == x.device for name in CHILDREN
        )


def pack_children(parent: nn.Module, names: Iterable[str], fmt: str, transposed: str = "") -> Callable[[], None]:
    """Put packed Linears in place of some Linears of a module; returns what puts the originals back."""
    originals = {name: child for name in names if type(child := parent._modules[name]) is nn.Linear}
    packed = {name: PackedLinear(child, fmt, name == transposed) for name, child in originals.items()}

    def take_back() -> None:
        parent._modules.update(originals)

    parent._modules.update(packed)
    return take_back


def packed_format(model: nn.Module) -> str | None:
    """The format that a model's Linears are rounded to; None where there are none."""
    return next((module.format for module in model.modules() if isinstance(module, PackedLinear)), None)


def check_can_pack(model: nn.Module, weights: str | None, linears: bool) -> None:
    """Raise UserError for what `accelerate` cannot round to, or what it cannot round."""
    if weights is None:
        if linears:
            raise UserError('accelerate: linears=True is about rounding; pass weights="int8" or "int4" as well')
        return
    if weights not in GROUP:
        raise UserError(f"accelerate: weights is {weights!r}; supported are {', '.join(GROUP)}, or None to keep them")
    held = packed_format(model)
    if held not in (None, weights):
        raise UserError(f"accelerate: the weights are rounded to {held} already; load the model again for {weights}")
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        if "_hf_hook" in module.__dict__ or module.weight.is_meta:
            raise UnsupportedError(
                f"accelerate: {name} is placed by a device_map, which rounded weights cannot follow; load the model "
                "on one device"
            )
        if not bool(torch.isfinite(torch.stack(torch.aminmax(module.weight.detach()))).all()):
            raise UserError(f"accelerate: {name} has weights that are NaN or infinite; load the model again")
