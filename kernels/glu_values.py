"""h = act(gate) * up for the many tokens of a prefill, between its dense GEMMs.

The values are what GEMMs rounded to their dtype; the product is formed in fp32 and rounded once. One pass over both
instead of one for every comparison, selection and product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import Activation, gate_value, up_value
from .checks import FLOAT_DTYPES, check_alike
from .glu_active import weigh
from .library import register


def glu_values(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """What goes into the down projection.

    Args:
        gate, up: pre-activations, [tokens, neurons] each, one of fp32 | fp16 | bf16, contiguous. `gate` is overwritten.
        activation: any.

    Returns:
        `gate`, which now holds act(gate) * up: exactly zero where the gate is closed even if up overflowed.

    Raises:
        ValueError: shapes or dtypes disagree, or a tensor is not contiguous.
    """
    check_alike("glu_values", gate=(gate, FLOAT_DTYPES), up=(up, (gate.dtype,)))
    act = activation
    # PyTorch's exponential is several to an instruction; ours would be one.
    op = torch.ops.prosparse.glu_values if act.makes_zeros else glu_values_reference
    op(gate, up, act.code, act.threshold, act.on_up)
    return gate


def glu_values_reference(gate: Tensor, up: Tensor, kind: int, threshold: float, on_up: bool) -> None:
    """The meaning of the op, in plain PyTorch."""
    gate.copy_(weigh(gate_value(gate.float(), kind, threshold), up_value(up.float(), on_up)))


def _fake(gate: Tensor, up: Tensor, kind: int, threshold: float, on_up: bool) -> None:
    return None


register(
    "glu_values(Tensor(a!) gate, Tensor up, int kind, float threshold, bool on_up) -> ()", glu_values_reference, _fake
)
