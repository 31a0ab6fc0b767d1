"""Subject "ops": every op of `kernels/` alone and cold, checked against its reference before it is timed.

Ops that PyTorch has as well take turns with PyTorch's. `op_cases.py`, `prompt_ops.py`, `ffn_ops.py`,
`plain_ops.py` and `predicted_ops.py` say what each op is called with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prosparse.config.shapes import shape as shape_named
from prosparse.errors import UserError

from .clock import interleave
from .ffn_ops import ffn, layers
from .op_cases import Group, Op, attention, norm, projection, rotary
from .plain_ops import plain
from .predicted_ops import predicted
from .probe import Probe
from .progress import Progress
from .prompt_ops import adds, norms, products
from .row import Row, floor, make_row, measured

WARM_UP = 4
# A new op gets a line here.
GROUPS: tuple[Group, ...] = (
    projection("qkv"),
    projection("o"),
    projection("gate"),
    projection("lm_head"),
    attention,
    norm,
    rotary,
    norms,
    products,
    adds,
    ffn,
    predicted,
    plain,
    layers,
)
GATED: tuple[Group, ...] = (norm, norms, products, ffn, predicted, layers)  # no model without up projection calls these


def compare_ops(
    shape: str = "minicpm-s-1b",
    weights: str = "bf16",
    sparsity: float = 0.88,
    context: int = 512,
    calls: int = 200,
    progress: Progress | None = None,
) -> list[Row]:
    """Time the ops at the sizes of a real shape, for one token.

    Args:
        shape: a name of `prosparse.config.shapes`, without dReLU.
        weights: format.
        sparsity: activation sparsity of the FFN ops, from 0 to 1.
        context: positions that attention sees.
        calls: timed calls of each.
        progress: called with (stage, done, total).

    Returns:
        One row per op that such a model calls and matrix: "subject" is the op, "part" the matrix, mode "pytorch"
        PyTorch's own op.

    Raises:
        UserError: no such shape or format, or a number out of range.
        MachineError: not enough memory, or an op is wrong.
    """
    config = shape_named(shape)
    if config.activation.on_up:
        raise UserError(f"bench: the ops subject needs a shape without dReLU, and {shape} has it")
    if not 0 <= sparsity <= 1:
        raise UserError(f"bench: activation sparsity must be from 0 to 1, got {sparsity}")
    if not 2 <= context <= config.max_position:
        raise UserError(f"bench: context must be from 2 to {config.max_position}, got {context}")
    probe, rows = Probe(), []
    groups = [group for group in GROUPS if config.gated or group not in GATED]
    for number, group in enumerate(groups):
        if progress is not None:
            progress("timing", number, len(groups))
        rows += time_group(group(config, weights, sparsity, context), calls, probe, shape=shape, context=context)
    return rows


@torch.inference_mode()
def time_group(ops: Mapping[str, Op], calls: int, probe: Probe, **labels: object) -> list[Row]:
    """Check, then time, ops that share operands or are to be compared, in one interleaved run.

    Args:
        ops: by a name of their own.
        calls: timed calls of each.
        probe: for the bandwidth.
        labels: further keys of the rows.
    """
    for op in ops.values():
        op.check()
    timings = interleave({**{name: op.call for name, op in ops.items()}, "probe": probe}, calls, WARM_UP)
    return [
        make_row(
            subject=op.subject,
            part=op.part,
            layers=op.layers,
            mode=op.mode,
            weights=op.weights,
            activation_sparsity=op.sparsity(calls + WARM_UP),
            repeat=1,
            **measured(timings, name, *op.against),
            **floor(op.read(calls + WARM_UP), op.distance, timings["probe"], timings[name]),
            **labels,
        )
        for name, op in ops.items()
    ]
