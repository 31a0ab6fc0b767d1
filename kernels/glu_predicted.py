"""A gated FFN over the neurons that a guess names: their gate, then up and down of those that are open.

    g[t, k] = gate[index[k]] . x[t]      h[t, k] = act(g[t, k]) * (up[index[k]] . x[t])
    y[t] = sum over k < count of h[t, k] * down[index[k]]

What the list lacks is missed; what it has too much costs a row of the gate and nothing else. Over a list of all neurons
it is `glu_exact`, on the CPU bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation, gate_value, is_active
from .active import ActiveNeurons
from .gate_select import check_makes_zeros
from .glu_active import check_list, glu_active_reference
from .glu_exact import check_glu
from .library import register
from .quant import as_matrix
from .tally import PREDICTED
from .weight import Weight


def glu_predicted(
    x: Tensor, gate: Weight, up: Weight, down: Weight, predicted: ActiveNeurons, activation: Activation, tally: Tensor
) -> Tensor:
    """FFN output from the listed neurons.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        gate, up, down: [neurons, hidden] each, one format; down has one neuron per row.
        predicted: from `predict_select` or `sign_select`; gate values are not needed.
        activation: any that makes zeros.
        tally: [4] int64 counters on x's device, see `kernels.tally`; what this call did is added.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32 in ascending order of neurons.

    Raises:
        ValueError: sizes disagree, a dtype is not supported, or the activation makes no zeros.
        RuntimeError: an index or the count is out of range, or the list does not ascend (checked where the list can
            be read without a sync: CPU).

    Source:
        Song et al., "PowerInfer" (2023), section 5.
    """
    check_glu("glu_predicted", x, gate, up, down)
    check_makes_zeros("glu_predicted", activation)
    return torch.ops.prosparse.glu_predicted(
        x, gate.codes, up.codes, down.codes, predicted.index, predicted.count, activation.code, activation.threshold,
        activation.on_up, tally,
    )  # fmt: skip


def glu_predicted_reference(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, index: Tensor, count: Tensor, kind: int, threshold: float,
    on_up: bool, tally: Tensor,
) -> Tensor:  # fmt: skip
    """The meaning of the op, in plain PyTorch. Syncs with the host to read `count`."""
    rows = check_list("glu_predicted", index, count, gate.shape[0])
    g = torch.nn.functional.linear(x.float(), as_matrix(gate[rows], x.shape[1]))
    opened = is_active(g, kind, threshold).any(dim=0)
    tally[PREDICTED] += rows.numel()
    listed = rows[opened].int()
    value = gate_value(g[:, opened], kind, threshold)
    return glu_active_reference(x, up, down, listed, opened.sum(dtype=torch.int32), value, on_up, tally)


def _fake(x: Tensor, *arguments: object) -> Tensor:
    return torch.empty_like(x)


register(
    "glu_predicted(Tensor x, Tensor gate, Tensor up, Tensor down, Tensor index, Tensor count, int kind, "
    "float threshold, bool on_up, Tensor(a!) tally) -> Tensor",
    glu_predicted_reference,
    _fake,
)
