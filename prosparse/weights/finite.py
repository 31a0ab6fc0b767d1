"""NaN and infinity in weights are faults of the file: they are found while it is read, not in the text it writes."""

from __future__ import annotations

import torch
from torch import Tensor

from prosparse.kernels import quant
from prosparse.kernels.weight import FORMAT_OF_DTYPE

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .pickled import PickledCheckpoint


def check_finite(checkpoint: Checkpoint | PickledCheckpoint, name: str, converted: Tensor) -> None:
    """Insist that a tensor, or a block of it, is finite in the dtype it was converted to.

    Raises:
        CheckpointError: the stored tensor is not finite, or the dtype is too narrow for it.
    """
    # minimum and maximum carry NaN along, and are found twenty times faster than by isfinite on bf16
    low, high = torch.aminmax(converted)
    if torch.isfinite(low) and torch.isfinite(high):
        return
    stored = checkpoint.read(name)
    where = f"{checkpoint.path(name)}: {checkpoint.stored_name(name)}"
    if bad := stored.numel() - int(torch.isfinite(stored).sum()):
        raise CheckpointError(
            f"{where} has {bad} of {stored.numel()} weights that are NaN or infinite; download it again"
        )
    raise CheckpointError(
        f"{where} has weights beyond the range of {FORMAT_OF_DTYPE[converted.dtype]}; use --weights bf16 or fp32"
    )


def check_scales(checkpoint: Checkpoint | PickledCheckpoint, name: str, codes: Tensor, columns: int) -> None:
    """Insist that the scales of packed rows, [rows, row_bytes] of a matrix with so many columns, are finite.

    Raises:
        CheckpointError: some scale is NaN or infinite.
    """
    fmt = quant.FORMAT[codes.dtype]
    start, count = quant.code_bytes(fmt, columns), quant.groups(fmt, columns)
    bits = codes.view(torch.uint8)[:, start : start + 2 * count].view(torch.int16)
    bad = int(((bits & 0x7F80) == 0x7F80).sum())  # all bits of a bf16's exponent set
    if bad:
        where = f"{checkpoint.path(name)}: {checkpoint.stored_name(name)}"
        raise CheckpointError(
            f"{where} has {bad} of {bits.numel()} scales that are NaN or infinite; the file is damaged: convert the "
            "original model again"
        )
