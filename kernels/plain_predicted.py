"""An FFN without up projection over the neurons that a guess names: their gate, then down of those that are open.

    v[t, k] = act(gate[index[k]] . x[t] + gate_bias[index[k]])
    y[t] = sum over k < count of v[t, k] * down[index[k]], + down_bias

What the list lacks is missed. Over a list of all neurons it is `plain_exact`, on the CPU bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation
from .active import ActiveNeurons
from .gate_select import check_makes_zeros
from .glu_active import check_list
from .library import register
from .plain_exact import check_plain, plain_exact_reference
from .tally import PREDICTED
from .weight import Weight


def plain_predicted(
    x: Tensor,
    gate: Weight,
    gate_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    predicted: ActiveNeurons,
    activation: Activation,
    tally: Tensor,
) -> Tensor:
    """FFN output from the listed neurons.

    Args:
        x, gate, gate_bias, down, down_bias, activation, tally: as of `plain_exact`.
        predicted: from `predict_select` or `sign_select`; gate values are not needed.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32 in ascending order of neurons.

    Raises:
        ValueError: sizes disagree, a dtype is not supported, or the activation makes no zeros.
        RuntimeError: an index or the count is out of range, or the list does not ascend (checked where the list can
            be read without a sync: CPU).

    Source:
        Song et al., "PowerInfer" (2023), section 5.
    """
    check_plain("plain_predicted", x, gate, gate_bias, down, down_bias, activation)
    check_makes_zeros("plain_predicted", activation)
    return torch.ops.prosparse.plain_predicted(
        x, gate.codes, gate_bias, down.codes, down_bias, predicted.index, predicted.count, activation.code,
        activation.threshold, tally,
    )  # fmt: skip


def plain_predicted_reference(
    x: Tensor, gate: Tensor, gate_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, index: Tensor,
    count: Tensor, kind: int, threshold: float, tally: Tensor,
) -> Tensor:  # fmt: skip
    """The meaning of the op, in plain PyTorch. Syncs with the host to read `count`."""
    rows = check_list("plain_predicted", index, count, gate.shape[0])
    tally[PREDICTED] += rows.numel()
    bias = None if gate_bias is None else gate_bias[rows]
    return plain_exact_reference(x, gate[rows], bias, down[rows], down_bias, kind, threshold, tally)


def _fake(x: Tensor, *arguments: object) -> Tensor:
    return torch.empty_like(x)


register(
    "plain_predicted(Tensor x, Tensor gate, Tensor? gate_bias, Tensor down, Tensor? down_bias, Tensor index, "
    "Tensor count, int kind, float threshold, Tensor(a!) tally) -> Tensor",
    plain_predicted_reference,
    _fake,
)
