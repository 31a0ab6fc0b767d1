"""An FFN of the op tests, cut in two as a plan would."""

from __future__ import annotations

import torch
from cases import Case
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.rms_norm import rms_norm
from prosparse.kernels.weight import Weight
from prosparse.sparsity import HybridFFN, Selector
from prosparse.sparsity.double_buffer import DoubleBuffer
from prosparse.sparsity.link import Link
from prosparse.weights.predictor import LayerPredictor

CPU = torch.device("cpu")
EPS = 1e-5


def some_order(neurons: int, seed: int = 3) -> Tensor:
    return torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))


def divide(
    case: Case,
    activation: Activation,
    mode: str,
    gate: int,
    hot: int,
    order: Tensor,
    predictor: LayerPredictor | None = None,
    scale: float = 1.0,
    block_bytes: int = 4096,
) -> HybridFFN:
    """The case's FFN behind a norm of ones, its first `gate` and `hot` neurons in this order on the one side."""

    def parts(weight: Weight, cut: int) -> tuple[Weight, Weight]:
        codes = weight.codes[order]
        return Weight(codes[:cut], weight.packed_columns), Weight(codes[cut:], weight.packed_columns)

    cut = [parts(case.gate, gate), parts(case.up, hot), parts(case.down, hot)]
    selector = None
    if predictor is not None:
        selector = Selector(predictor.in_order(order), *cut[0])
    return HybridFFN(
        torch.ones(case.x.shape[1]),
        EPS,
        tuple(near for near, _ in cut),  # type: ignore[arg-type]
        tuple(far for _, far in cut),  # type: ignore[arg-type]
        order,
        activation,
        scale,
        mode,
        Link(CPU, CPU),
        DoubleBuffer(CPU, block_bytes),
        selector,
    )


def normed(x: Tensor) -> Tensor:
    return rms_norm(x, torch.ones(x.shape[1]), EPS)
