"""How often each neuron is active, and how alike two tokens must be: the numbers behind the knobs, without any weights.

Rates are the quantiles of a Beta distribution per layer. A neuron is active where a normal number exceeds z. For two
tokens whose numbers correlate by c, it is active for both with a probability that a common factor u gives:

    P(both) = E_u [ Phi((sqrt(c) u - z) / sqrt(1 - c))^2 ],   u normal
"""

from __future__ import annotations

import torch
from torch import Tensor

HOT = 0.2  # the hottest fifth of the neurons: skew is the share of activations that it carries
ENDS = 0.4  # how much busier than its neighbours the first and the last layer are, as a share of what is possible
EDGE = 18.0  # rates end at logit -18 and 18, which is once in 66 million tokens
STEPS = 4097


def layer_rates(rate: float, layers: int) -> Tensor:
    """Mean rate of each layer, [layers] float64: a parabola over the layers, the ends busier, whose mean is `rate`."""
    at = torch.linspace(-1, 1, layers, dtype=torch.float64) if layers > 1 else torch.zeros(1, dtype=torch.float64)
    shape = at.square() - at.square().mean()
    return rate + ENDS * 1.5 * rate * (1 - rate) * shape


def beta_quantiles(means: Tensor, concentration: float, count: int) -> Tensor:
    """The (i + 1/2) / count quantiles of Beta(mean * concentration, (1 - mean) * concentration), ascending.

    Args:
        means: [layers] float64.
        concentration: large makes all rates alike, small makes a few neurons always active and the others never.
        count: how many.

    Returns:
        [layers, count] float64.
    """
    means = means.clamp(1e-9, 1 - 1e-9)[:, None]
    a, b = means * concentration, (1 - means) * concentration
    y = torch.linspace(-EDGE, EDGE, STEPS, dtype=torch.float64)  # of the logit, in which the density has no poles
    low, high = torch.nn.functional.logsigmoid(y), torch.nn.functional.logsigmoid(-y)
    log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    density = torch.exp(a * low + b * high - log_norm)
    below = torch.exp(a * low[0] - log_norm) / a  # what lies beyond the ends, where one factor of the density is 1
    above = torch.exp(b * high[-1] - log_norm) / b
    inside = torch.cumulative_trapezoid(density, y)
    cdf = torch.cat([below, below + inside], 1)
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count * (cdf[:, -1:] + above)
    right = torch.searchsorted(cdf, wanted).clamp(1, STEPS - 1)
    cdf_left, cdf_right = cdf.gather(1, right - 1), cdf.gather(1, right)
    share = ((wanted - cdf_left) / (cdf_right - cdf_left).clamp_min(1e-300)).clamp(0, 1)
    return torch.sigmoid(y[right - 1] + share * (y[1] - y[0]))


def hot_share(rates: Tensor) -> float:
    """Share of activations in the hottest fifth of each layer's neurons, mean over layers; rates [layers, neurons]."""
    ordered = rates.sort(dim=1, descending=True).values
    return float((ordered[:, : round(HOT * rates.shape[1])].sum(1) / ordered.sum(1)).mean())


def both(rates: Tensor, correlation: float) -> Tensor:
    """The probability that a neuron is active for both of two tokens, shape of `rates`."""
    if correlation <= 0:
        return rates.square()
    if correlation >= 1:
        return rates
    z = -torch.special.ndtri(rates)
    u = torch.linspace(-7, 7, 71, dtype=torch.float64)
    weight = torch.exp(-u.square() / 2)
    result = torch.zeros_like(rates)
    for at, share in zip(u.tolist(), (weight / weight.sum()).tolist(), strict=True):
        result += share * torch.special.ndtr((correlation**0.5 * at - z) / (1 - correlation) ** 0.5).square()
    return result


def pair_overlap(rates: Tensor, correlation: float, on_up: bool) -> float:
    """Share of a token's active neurons that were active for another one, mean over layers.

    Args:
        rates: [layers, neurons] float64.
        correlation: of the two tokens' pre-activations.
        on_up: gate and up must both be open (dReLU), each with the root of the rate.
    """
    joint = both(rates.sqrt(), correlation).square() if on_up else both(rates, correlation)
    return float((joint.sum(1) / rates.sum(1)).mean())
