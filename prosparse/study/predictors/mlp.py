"""Training one layer's predictor: second . first . x + bias, or with a ReLU between, by weighted binary cross entropy.

It starts from the truncated SVD of the gate, with a ReLU each direction once as it is and once negated, since z =
relu(z) - relu(-z), scaled such that the score is about the log-odds of being active. Positives weigh 1, negatives
mean(active) + 0.005 (Liu et al., "Deja Vu", 2023; Song et al., "ProSparse", 2024, appendix F). The best epoch is kept:
the one that names the fewest neurons at the recall asked for, on windows that it was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..watch import AnyFFN, pre_activation
from .curve import Curve
from .guess import Line
from .low_rank import Moments, parts
from .record import Rows

LOGISTIC = 1.702  # deviations of the normal distribution in log-odds: the logistic curve closest to it
LEAST_WEIGHT = 0.005
LEAST_UNIT = 0.1  # of the score's deviation: a guess that is nearly perfect would start with log-odds that cannot move
LEAST_CONSTANT = 0.05  # of a constant that hidden units make
RIDGE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        recall: at which epochs and ranks are compared.
        relu: between the matrices.
        bias: of the neurons; without one, as PowerInfer has it, the hidden units make a constant.
        epochs, patience: at most so many, and so many without gain.
        batch, lr, decay: of AdamW.
        seed: of the order of rows.
    """

    recall: float
    relu: bool = True
    bias: bool = True
    epochs: int = 20
    patience: int = 3
    batch: int = 1024
    lr: float = 1e-3
    decay: float = 0.01
    seed: int = 0


@dataclass
class Net:
    """A trained predictor: first [rank, hidden], second [neurons, rank], bias [neurons], all float32.

    Attributes:
        constant: [rank], weights of hidden units that sum up to about 1; None where there is a bias.
        spread: units of the margin in the score.
        curve: margins on the windows it was not trained on.
    """

    first: Tensor
    second: Tensor
    bias: Tensor
    relu: bool
    constant: Tensor | None = None
    spread: float = 1.0
    curve: Curve = field(default_factory=Curve)

    def inner(self, x: Tensor) -> Tensor:
        z = x @ self.first.t()
        return torch.relu(z) if self.relu else z

    def needed(self, inner: Tensor) -> Tensor:
        """Margins that just predict each neuron, [tokens, neurons]."""
        unit: Tensor | float = self.spread
        if self.constant is not None:
            unit = (inner @ self.constant).clamp_min(LEAST_CONSTANT)[:, None] * self.spread
        return -(inner @ self.second.t() + self.bias) / unit

    def with_margin(self, margin: float) -> tuple[Tensor, Tensor]:
        """second and offset of the finished predictor."""
        if self.constant is None or math.isinf(margin):
            return self.second, self.bias + margin * self.spread
        return self.second + margin * self.spread * self.constant, self.bias


def start(ffn: AnyFFN, rows: Rows, fit: Tensor, rank: int, threshold: float, recipe: Recipe) -> Net:
    """What training begins with, from recorded rows `fit`."""
    device = ffn.gate.codes.device
    moments, line = Moments(), Line()
    blocks = fit.split(4 * recipe.batch)
    for block in blocks:
        moments.add(rows.take(block, device)[0])
    first, second = parts(ffn.gate, moments, max(1, rank // 2) if recipe.relu else rank)
    for block in blocks[:8]:
        x = rows.take(block, device)[0]
        line.add((x @ first.t()) @ second.t(), pre_activation(ffn, x))
    base, unit = line.base_and_unit(threshold)
    spread = ((rows.take(blocks[0], device)[0] @ first.t()) @ second.t()).std(0)
    scale = LOGISTIC / torch.maximum(unit, LEAST_UNIT * spread).clamp_min(1e-6)
    second, bias = second * scale[:, None], base * scale
    if recipe.relu:
        first, second = torch.cat([first, -first]), torch.cat([second, -second], 1)
    net = Net(first, second, bias if recipe.bias else torch.zeros_like(bias), recipe.relu)
    if not recipe.bias:
        _make_constant(net, rows, fit, device)
        assert net.constant is not None
        net.second = net.second + bias[:, None] * net.constant
    return net


def train_layer(
    net: Net, rows: Rows, fit: Tensor, check: Tensor, scale: Tensor, recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> Net:  # fmt: skip
    """The best of the start and the epochs after it.

    Args:
        net: from `start`; is changed.
        rows: of the layer.
        fit, check: rows to train on, and to choose by.
        scale: length of every neuron's row of down, [neurons].
        progress: called with (done, total) epochs.
    """
    device = scale.device
    tensors = [net.first, net.second, *([net.bias] if recipe.bias else [])]
    for tensor in tensors:
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(tensors, recipe.lr, weight_decay=recipe.decay)
    best = _judged(net, rows, fit, check, scale, recipe)
    since = 0
    for epoch in range(recipe.epochs):
        rng = torch.Generator().manual_seed(recipe.seed * 1009 + epoch)
        for block in fit[torch.randperm(len(fit), generator=rng)].split(recipe.batch):
            x, active = rows.take(block, device)
            score = net.inner(x) @ net.second.t() + net.bias
            wanted = active.float()
            weight = float(wanted.mean()) + LEAST_WEIGHT
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                score, wanted, torch.where(active, 1.0, weight), reduction="sum"
            ) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = _judged(net, rows, fit, check, scale, recipe)
        since = 0 if _named(now, recipe) < _named(best, recipe) else since + 1
        best = now if since == 0 else best
        if progress is not None:
            progress(epoch + 1, recipe.epochs)
        if since >= recipe.patience:
            break
    return best


def _named(net: Net, recipe: Recipe) -> float:
    return net.curve.predicted(net.curve.margin(recipe.recall))


@torch.no_grad()
def _judged(net: Net, rows: Rows, fit: Tensor, check: Tensor, scale: Tensor, recipe: Recipe) -> Net:
    """A copy with its curve."""
    copy = Net(net.first.detach().clone(), net.second.detach().clone(), net.bias.detach().clone(), net.relu)
    if not recipe.bias:
        _make_constant(copy, rows, fit, scale.device)
    fill_curve(copy, rows, check, scale)
    return copy


@torch.no_grad()
def fill_curve(net: Net, rows: Rows, check: Tensor, scale: Tensor) -> None:
    """Set spread and curve from recorded rows. Output mass is not recorded: each activation counts its row of down."""
    blocks = check.split(1024)
    inner = net.inner(rows.take(blocks[0], scale.device)[0])
    net.spread = float((inner @ net.second.t()).std().clamp_min(1e-6)) / 4
    net.curve = Curve()
    for block in blocks:
        x, active = rows.take(block, scale.device)
        net.curve.add(net.needed(net.inner(x)), active, scale.expand_as(active))


@torch.no_grad()
def _make_constant(net: Net, rows: Rows, fit: Tensor, device: torch.device) -> None:
    """The weights v of hidden units with the least mean of (v . relu(z) - 1)^2."""
    products, sums, tokens = torch.zeros(()), torch.zeros(()), 0
    for block in fit.split(4096)[:4]:
        inner = net.inner(rows.take(block, device)[0])
        products, sums, tokens = products + inner.t() @ inner, sums + inner.sum(0), tokens + len(block)
    products = products / tokens
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products), device=device)
    net.constant = torch.linalg.solve(products + ridge, sums / tokens)
