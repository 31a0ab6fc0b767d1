"""A whole gated FFN for a few tokens, skipping exactly the neurons that are zero.

    glu_exact = glu_active(gate_select(x))

One op, so that a backend may do it in one pass: the C++ kernel walks fixed chunks of neurons, and for each chunk scans
the gate, then reads up and down only where it opened. Partial sums belong to chunks and are added in order, so the
result does not depend on the number of threads, and equals `glu_dense` bit for bit when all weights are finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation
from .checks import check_input, check_shape
from .gate_select import check_makes_zeros, gate_select_reference
from .glu_active import check_same_format, glu_active_reference
from .library import register
from .weight import Weight


def glu_exact(x: Tensor, gate: Weight, up: Weight, down: Weight, activation: Activation, tally: Tensor) -> Tensor:
    """FFN output, reading up and down only where the gate is open.

    Args:
        x: normed input of the FFN, [tokens, hidden] fp32 | fp16 | bf16, 1 to 16 tokens.
        gate, up, down: [neurons, hidden] each, one format; down has one neuron per row.
        activation: any that makes zeros.
        tally: [4] int64 counters on x's device, see `kernels.tally`; what this call did is added.

    Returns:
        [tokens, hidden], dtype of x, accumulated in fp32.

    Raises:
        ValueError: sizes disagree, a dtype is not supported, or the activation makes no zeros.

    Source:
        The accurate acceleration of Song et al., "ProSparse" (2024), section 3.3, in one pass.
    """
    check_glu("glu_exact", x, gate, up, down)
    check_makes_zeros("glu_exact", activation)
    return torch.ops.prosparse.glu_exact(
        x, gate.codes, up.codes, down.codes, activation.code, activation.threshold, activation.on_up, tally
    )


def check_glu(op: str, x: Tensor, gate: Weight, up: Weight, down: Weight) -> None:
    """Checks shared by the whole-FFN ops."""
    neuron_rows = ("neurons", "hidden")
    check_shape(
        op,
        x=(x, ("tokens", "hidden")),
        gate=(gate, neuron_rows),
        up=(up, neuron_rows),
        down=(down, neuron_rows),
    )
    check_input(op, x)
    check_same_format(op, gate=gate, up=up, down=down)


def glu_exact_reference(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: int, threshold: float, on_up: bool, tally: Tensor
) -> Tensor:
    """The meaning of the op: select, then compute."""
    index, count, value = gate_select_reference(x, gate, kind, threshold)
    return glu_active_reference(x, up, down, index, count, value, on_up, tally)


def fake_glu(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: int, threshold: float, on_up: bool, tally: Tensor
) -> Tensor:
    """Shape of a whole-FFN op's output."""
    return torch.empty_like(x)


GLU_ARGUMENTS = (
    "(Tensor x, Tensor gate, Tensor up, Tensor down, int kind, float threshold, bool on_up, Tensor(a!) tally)"
)
register(f"glu_exact{GLU_ARGUMENTS} -> Tensor", glu_exact_reference, fake_glu)
