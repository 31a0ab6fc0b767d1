"""Select the neurons that a guess names, before their gate is read.

    score[t, j] = weight[j] . x[t] + offset[j]                                predict_select
    score[t, j] = agreeing - differing signs of gate[j] and x[t] + offset[j]  sign_select
    index = ascending ids of neurons with `not score < 0` for any token, so NaN names its neuron

It reads the guess's own matrix: a low rank, a low-bit copy of the gate, or its packed signs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .active import ActiveNeurons, compact
from .checks import check_input, check_shape
from .library import register
from .quant import as_matrix
from .weight import Weight

WORD = 64  # signs in a word


def predict_select(x: Tensor, weight: Weight, offset: Tensor) -> ActiveNeurons:
    """The union of the neurons that the guess names for the tokens of x, without gate values.

    Args:
        x: [tokens, columns] fp32 | fp16 | bf16, 1 to 16 tokens: the normed input of the FFN, or what a first matrix
            made of it.
        weight: [neurons, columns], any format.
        offset: [neurons] float32.

    Returns:
        `ActiveNeurons` of capacity `neurons`, value None.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.

    Source:
        Low rank: Liu et al., "Deja Vu" (2023), section 4.
    """
    check_shape(
        "predict_select", x=(x, ("tokens", "columns")), weight=(weight, ("neurons", "columns")),
        offset=(offset, ("neurons",)),
    )  # fmt: skip
    check_input("predict_select", x)
    return ActiveNeurons(*torch.ops.prosparse.predict_select(x, weight.codes, offset))


def sign_select(x: Tensor, signs: Tensor, offset: Tensor) -> ActiveNeurons:
    """The same from signs alone.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        signs: from `pack_signs` of the gate, [neurons, words] int64.
        offset: [neurons] float32.

    Returns:
        `ActiveNeurons` of capacity `neurons`, value None.

    Raises:
        ValueError: sizes disagree, or a dtype is not supported.

    Source:
        Shin et al., "SparseInfer" (2024), section IV.
    """
    check_shape(
        "sign_select", x=(x, ("tokens", "hidden")), signs=(signs, ("neurons", "words")), offset=(offset, ("neurons",))
    )
    check_input("sign_select", x)
    if signs.shape[1] != (expected := words(x.shape[1])):
        raise ValueError(
            f"sign_select: signs has {signs.shape[1]} words a neuron, but {x.shape[1]} columns take {expected}; "
            "pack the gate of this layer"
        )
    return ActiveNeurons(*torch.ops.prosparse.sign_select(x, signs, offset))


def words(columns: int) -> int:
    """Words that hold the signs of so many columns."""
    return -(-columns // WORD)


def pack_signs(matrix: Tensor) -> Tensor:
    """Sign bits of a float matrix: [rows, columns] to [rows, words] int64, column c in bit c % 64 of word c // 64.

    A bit is 1 where the sign bit is set, minus zero included; the bits beyond the last column are 0.
    """
    rows, columns = matrix.shape
    bits = torch.zeros(rows, words(columns) * WORD, dtype=torch.int64, device=matrix.device)
    bits[:, :columns] = matrix.signbit()
    return (bits.view(rows, -1, WORD) << torch.arange(WORD, device=matrix.device)).sum(-1)


def unpack_signs(signs: Tensor, columns: int) -> Tensor:
    """+1 or -1 for each column, [rows, columns] float32."""
    bits = signs[:, :, None] >> torch.arange(WORD, device=signs.device) & 1
    return 1 - 2 * bits.flatten(1)[:, :columns].float()


def named(score: Tensor) -> Tensor:
    """Which neurons a guess names, bool of the shape of its scores."""
    return ~(score < 0)


def predict_score(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """[tokens, neurons] float32."""
    return torch.nn.functional.linear(x.float(), as_matrix(weight, x.shape[1])) + offset


def sign_score(x: Tensor, signs: Tensor, offset: Tensor) -> Tensor:
    """[tokens, neurons] float32: whole numbers, exact, plus the offset."""
    ones = torch.ones(x.shape, device=x.device)
    return torch.nn.functional.linear(ones.copysign(x.float()), unpack_signs(signs, x.shape[1])) + offset


def predict_select_reference(x: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The meaning of the op, in plain PyTorch, without a host sync."""
    return compact(named(predict_score(x, weight, offset)).any(dim=0))


def sign_select_reference(x: Tensor, signs: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The meaning of the op, in plain PyTorch, without a host sync."""
    return compact(named(sign_score(x, signs, offset)).any(dim=0))


def _fake(x: Tensor, matrix: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(matrix.shape[0], dtype=torch.int32), x.new_empty(1, dtype=torch.int32)


register("predict_select(Tensor x, Tensor weight, Tensor offset) -> (Tensor, Tensor)", predict_select_reference, _fake)
register("sign_select(Tensor x, Tensor signs, Tensor offset) -> (Tensor, Tensor)", sign_select_reference, _fake)
