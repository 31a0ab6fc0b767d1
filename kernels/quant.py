"""int8 and int4: what a code means, how rows are packed, and how weights are rounded to them.

Columns are cut into groups, and every group has a scale of its own, stored as bf16:

    int8: value = code * scale, code -127..127, groups of 128       8.125 bits a weight
    int4: value = (code - 8) * scale, code 0..15, groups of 32      4.5 bits a weight

A row is one piece of memory: the codes of all groups, their scales, and zeros up to a multiple of 16 bytes, so that a
neuron costs one stretch of cache lines and loads of 16 bytes are aligned. The last group is filled up with codes of
zero. int8 codes stand in order. 32 int4 codes are four little-endian words of 32 bits, in which bits 4i to 4i+3 of word
j hold column 4i + j: one shift brings 4 neighbouring columns of every group to the bottom of the words, on the CPU and
on the GPU alike. The dtype of the tensor names the format: int8, and uint8 for int4.

Scales are bf16 because codes are fitted to the scale as stored: digits of it gain nothing, and its range is fp32's. An
int8 scale is the largest weight / 127, rounded up, so that nothing is clipped. With 15 steps that choice is poor (the
largest weight of a group decides alone), so an int4 scale is searched: of several scales that map the largest weight to
a bit more or less than -8, the best in squared error after a least-squares fit. On normal weights the mean squared
error is 11 % below that of mapping the largest weight to -8, and 30 % below that of largest / 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .library import register

GROUP = {"int8": 128, "int4": 32}
DTYPE = {"int8": torch.int8, "int4": torch.uint8}
RANGE = {"int8": (-127, 127), "int4": (-8, 7)}  # of value / scale
FORMAT = {dtype: fmt for fmt, dtype in DTYPE.items()}
ALIGNMENT = 16  # bytes
LEAST = 2.0**-120  # groups of smaller weights become zeros: the inverse of their scale may not be finite

# An int4 scale starts from largest weight / -d for each of these d; more candidates gain less than 0.6 %.
DIVISORS = (6.25, 6.75, 7.25, 7.75, 8.25, 8.75, 9.25, 9.75)


def groups(fmt: str, columns: int) -> int:
    """Groups of a row; the last may be filled up."""
    return -(-columns // GROUP[fmt])


def code_bytes(fmt: str, columns: int) -> int:
    """Bytes of a row's codes; its scales follow."""
    return groups(fmt, columns) * GROUP[fmt] // (2 if fmt == "int4" else 1)


def row_bytes(fmt: str, columns: int) -> int:
    """Bytes of a packed row."""
    return -(-(code_bytes(fmt, columns) + 2 * groups(fmt, columns)) // ALIGNMENT) * ALIGNMENT


def empty(fmt: str, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised packed matrix, [rows, row_bytes]."""
    return torch.empty(rows, row_bytes(fmt, columns), dtype=DTYPE[fmt], device=device)


def quantize(matrix: Tensor, fmt: str, out: Tensor | None = None) -> Tensor:
    """Round a matrix to a format.

    Args:
        matrix: [rows, columns] fp32 | fp16 | bf16, finite, rows contiguous.
        fmt: "int8" or "int4".
        out: where the packed rows go, [rows, row_bytes] of the format's dtype; None makes a new tensor.

    Returns:
        [rows, row_bytes].

    Raises:
        ValueError: no such format, or `out` does not fit.
    """
    if fmt not in GROUP:
        raise ValueError(f"quantize: format is {fmt!r}; supported are {', '.join(GROUP)}")
    if matrix.dim() != 2:
        raise ValueError(f"quantize: matrix must be [rows, columns], got shape {tuple(matrix.shape)}")
    rows, columns = matrix.shape
    if out is None:
        out = empty(fmt, rows, columns, matrix.device)
    if out.shape != (rows, row_bytes(fmt, columns)) or out.dtype != DTYPE[fmt] or out.stride(-1) != 1:
        raise ValueError(
            f"quantize: out must be [{rows}, {row_bytes(fmt, columns)}] {DTYPE[fmt]} with contiguous rows, got "
            f"{tuple(out.shape)} {out.dtype}, strides {out.stride()}"
        )
    torch.ops.prosparse.quantize(matrix if matrix.stride(-1) == 1 else matrix.contiguous(), out)
    return out


def dequantize(codes: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of a packed matrix.

    Args:
        codes: [rows, row_bytes], int8 or uint8.
        columns: of the matrix.
        dtype: of the result, float32 or bfloat16; a value has up to 15 significant bits, which bf16 rounds.

    Returns:
        [rows, columns].

    Raises:
        ValueError: codes is no packed format, its rows are not as long as `columns` makes them, or another dtype.
    """
    check_packed("dequantize", "codes", codes, columns)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dequantize: dtype must be float32 or bfloat16, got {dtype}; convert the result")
    out = torch.empty(codes.shape[0], columns, dtype=dtype, device=codes.device)
    torch.ops.prosparse.dequantize(codes, out)
    return out


def check_packed(op: str, name: str, codes: Tensor, columns: int) -> None:
    """codes must be a packed matrix of this many columns."""
    if codes.dtype not in FORMAT:
        raise ValueError(f"{op}: {name} has dtype {codes.dtype}, which is no packed format; quantize it")
    fmt = FORMAT[codes.dtype]
    if codes.dim() != 2 or codes.shape[1] != row_bytes(fmt, columns) or codes.stride(1) != 1:
        raise ValueError(
            f"{op}: {name} must hold {columns} columns as {fmt}, [rows, {row_bytes(fmt, columns)}] with contiguous "
            f"rows, got {tuple(codes.shape)}, strides {codes.stride()}"
        )


def as_matrix(codes: Tensor, columns: int) -> Tensor:
    """[rows, columns] float32 of a weight in any format: what a reference computes with."""
    return dequantize_reference(codes, columns) if codes.dtype in FORMAT else codes.float()


def quantize_reference(matrix: Tensor, out: Tensor) -> None:
    """The meaning of the op, in plain PyTorch."""
    fmt = FORMAT[out.dtype]
    rows, columns = matrix.shape
    count, size = groups(fmt, columns), GROUP[fmt]
    padded = torch.zeros(rows, count * size, device=matrix.device)
    padded[:, :columns] = matrix
    grouped = padded.view(rows, count, size)
    scale = find_scale(grouped, fmt)
    pack((grouped * inverse_of(grouped, scale)).round().clamp(*RANGE[fmt]), scale, out)


def find_scale(grouped: Tensor, fmt: str, importance: Tensor | None = None) -> Tensor:
    """The scale of each group.

    Args:
        grouped: [rows, groups, group] float32.
        fmt: "int8" or "int4".
        importance: what a squared error in each column of a group costs, [group] float32; None is 1 for all. An int8
            scale does not depend on it.

    Returns:
        [rows, groups] bfloat16.
    """
    return _scale_int4(grouped, importance) if fmt == "int4" else _scale_int8(grouped)


def inverse_of(grouped: Tensor, scale: Tensor) -> Tensor:
    """What weights are multiplied with to become codes, [rows, groups, 1] float32; 0 for groups that become zeros."""
    return torch.where(grouped.abs().amax(-1) < LEAST, 0, 1 / scale.float())[..., None]


def pack(codes: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write packed rows, for those who round by rules of their own.

    Args:
        codes: [rows, groups, group], whole numbers within `RANGE`, before int4's offset of 8; any dtype.
        scale: [rows, groups] bfloat16.
        out: [rows, row_bytes] in the dtype of the format.
    """
    fmt = FORMAT[out.dtype]
    if fmt == "int4":
        packed = _pack_int4((codes + 8).to(torch.uint8))
    else:
        packed = codes.to(torch.int8).view(torch.uint8)
    target = out.view(torch.uint8) if out.dtype != torch.uint8 else out
    target.zero_()
    end = packed.shape[1] * packed.shape[2]
    target[:, :end] = packed.flatten(1)
    target[:, end : end + 2 * scale.shape[1]] = scale.contiguous().view(torch.uint8)


def dequantize_reference(codes: Tensor, columns: int) -> Tensor:
    """The values of a packed matrix in float32, in plain PyTorch."""
    fmt = FORMAT[codes.dtype]
    count, end = groups(fmt, columns), code_bytes(fmt, columns)
    data = codes.view(torch.uint8)
    # a clone, because a single row counts as contiguous wherever it starts
    scale = data[:, end : end + 2 * count].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
    packed = data[:, :end].unflatten(1, (count, end // count))
    value = _unpack_int4(packed).float() - 8 if fmt == "int4" else packed.view(torch.int8).float()
    return (value * scale[..., None]).flatten(1)[:, :columns].contiguous()


def _scale_int8(grouped: Tensor) -> Tensor:
    """bf16 [rows, groups]: largest magnitude / 127, rounded up."""
    exact = grouped.abs().amax(-1) / 127
    up = exact.view(torch.int32) + 0xFFFF  # the upper half of a float32 is the bf16 below it, for positive numbers
    return (up >> 16).to(torch.int16).view(torch.bfloat16)


def _scale_int4(grouped: Tensor, importance: Tensor | None) -> Tensor:
    """bf16 [rows, groups]: the searched scale."""
    high, low = grouped.amax(-1, keepdim=True), grouped.amin(-1, keepdim=True)
    largest = torch.where(high >= -low, high, low)
    share = torch.where(largest.abs() < LEAST, 0, grouped / largest)  # so that squares neither vanish nor overflow
    best = torch.full_like(largest, -1.0)
    scale = torch.zeros_like(largest)
    for divisor in DIVISORS:
        q = (share * -divisor).round().clamp(-8, 7)
        weighed = q if importance is None else q * importance
        product = (share * weighed).sum(-1, keepdim=True)
        square = (q * weighed).sum(-1, keepdim=True)
        gain = torch.where(square == 0, -1, product * product / square)  # what the fit takes off the squared error
        better = gain > best
        best = torch.where(better, gain, best)
        scale = torch.where(better, product / square, scale)
    return (scale * largest)[..., 0].to(torch.bfloat16)


def _pack_int4(codes: Tensor) -> Tensor:
    """[.., 32] codes to [.., 16] bytes: byte b of word j holds columns 8b + j and 8b + 4 + j."""
    pairs = codes.unflatten(-1, (4, 2, 4))  # [.., b, low or high half, j]
    return (pairs[..., 0, :] | pairs[..., 1, :] << 4).transpose(-1, -2).flatten(-2)


def _unpack_int4(packed: Tensor) -> Tensor:
    """[.., 16] bytes to [.., 32] codes."""
    by_byte = packed.unflatten(-1, (4, 4)).transpose(-1, -2)  # [.., b, j]
    return torch.stack((by_byte & 15, by_byte >> 4), dim=-2).flatten(-3)


def _dequantize_into(codes: Tensor, out: Tensor) -> None:
    out.copy_(dequantize_reference(codes, out.shape[1]))


def _fake(first: Tensor, out: Tensor) -> None:
    return None


register("quantize(Tensor matrix, Tensor(a!) out) -> ()", quantize_reference, _fake)
register("dequantize(Tensor codes, Tensor(a!) out) -> ()", _dequantize_into, _fake)
