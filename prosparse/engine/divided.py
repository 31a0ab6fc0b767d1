"""A placed plan in memory: who gets which rows, and the FFN blocks that two devices share."""

from __future__ import annotations

import torch

from .. import machine
from ..config import ModelConfig
from ..errors import MachineError, UnsupportedError, UserError
from ..hardware import show_size
from ..model.tiers import FAST, SLOW, Tier, Tiers
from ..placement.sizes import ENGINE, Host, sizes_of
from ..plan import Placement, Plan, Split
from ..sparsity import HybridFFN, Selector
from ..sparsity.double_buffer import DoubleBuffer
from ..sparsity.link import Link
from ..weights import ModelWeights
from ..weights.divide import Cut, Division
from ..weights.formats import Formats
from ..weights.model_weights import ColdWeights, LayerWeights
from ..weights.neuron_profile import Profile
from ..weights.predictor import LayerPredictor, Predictor
from .memory_limit import Grant

CPU = torch.device("cpu")
GROWTH = 32 << 20  # bytes by which a context may have grown since the plan was made: less than any workspace


def fast_device(device: str) -> torch.device:
    """Where a placed plan puts what is hot.

    Args:
        device: as in `load`; "cpu" is a second part of the CPU's memory, for trying a plan where there is no GPU.

    Raises:
        MachineError: there is no GPU, and the CPU was not asked for.
    """
    found = machine.resolve_device(device)
    if found.type == "cpu" and device != "cpu":
        raise MachineError(
            "load: there is no GPU to place on; leave --budget or the placed plan out, or try it out within the CPU's "
            "memory with --device cpu (a budget needs --machine too, for example 8gb-pcie4)"
        )
    return found


def check_profile(plan: Plan, profile: Profile | None) -> Profile:
    """The profile that a placed plan was made with. Raises UserError for another one, or none."""
    assert plan.placement is not None, "only placed plans need a profile"
    wanted = plan.placement.profile
    if profile is None:
        raise UserError(f"plan: was made with profile {wanted}, which is not at hand; pass it with --profile")
    if profile.key != wanted:
        raise UserError(
            f"plan: was made with profile {wanted}, but this one is {profile.key}, which orders neurons differently; "
            "pass that one, or make the plan again"
        )
    return profile


def check_can_be_shared(config: ModelConfig) -> None:
    """Raise UnsupportedError for a model whose FFNs no two devices share."""
    if not config.gated or config.experts:
        kind = "experts" if config.experts else "FFNs without up projection"
        raise UnsupportedError(f"load: a model with {kind} runs on one device; leave --budget out")


def divide(plan: Plan, config: ModelConfig, profile: Profile | None, fast: torch.device) -> Division:
    """Where a placed plan puts the rows of a model's weights.

    Raises:
        UserError: layers are shared and the profile is not the plan's, or a layer of the CPU has neurons on the GPU.
        UnsupportedError: FFNs that cannot be shared.
    """
    assert plan.placement is not None, "a plan without placement is for one device"
    check_can_be_shared(config)
    splits = [layer.split or Split(0, 0, attention=False) for layer in plan.layers]
    shared = [split.attention and split.hot < config.neurons for split in splits]
    known = check_profile(plan, profile) if any(shared) else None  # what is whole on one device has no order
    cuts = []
    for number, (split, is_shared) in enumerate(zip(splits, shared, strict=True)):
        if not split.attention and split.gate:
            raise UserError(
                f"plan: layer {number} has its attention on the CPU but {split.gate} neurons on the GPU; all of such a "
                "layer is on the CPU: make the plan again"
            )
        order = known.hot_first(number) if known is not None and is_shared else None
        cuts.append(Cut(split.gate, split.hot, split.attention, order))
    return Division(fast, CPU, tuple(cuts), plan.placement.head)


def tiers_of(division: Division, tied: bool) -> Tiers:
    """Where the residual goes."""
    fast, slow = Tier(FAST, division.fast), Tier(SLOW, division.slow)
    head = fast if division.head else slow
    layers = tuple(fast if cut.attention else slow for cut in division.layers)
    beside = tuple(None if cut.order is None else slow for cut in division.layers)
    return Tiers(layers, head if tied else slow, head, beside)


def agreed(placement: Placement, asked: Formats, context: int | None) -> tuple[Formats, int]:
    """The formats and the context that a placed plan was made for. Raises UserError where others are asked for."""
    for what, wanted, planned in (
        ("--weights", asked.weights, placement.weights),
        ("--lm-head", asked.lm_head, placement.lm_head),
    ):
        if wanted not in ("auto", planned):
            raise UserError(f"plan: was made for {what} {planned}, not {wanted}; make one for that, or leave it out")
    if context is not None and context > placement.context:
        raise UserError(
            f"plan: has room for a context of {placement.context} tokens, not {context}; make one for that, or lower "
            "--context"
        )
    return Formats(placement.weights, placement.lm_head), placement.context if context is None else context


def check_room(
    plan: Plan,
    config: ModelConfig,
    context: int,
    predictor: Predictor | None,
    fast: torch.device,
    limit: Grant | None,
    host: Host = ENGINE,
) -> None:
    """Raise MachineError unless what a placed plan takes, beside the device's context, is free there now.

    Args:
        plan, config, predictor: of the model.
        context: tokens.
        fast: the device.
        limit: what the model may take there.
        host: who runs it.
    """
    placement = plan.placement
    assert placement is not None, "a plan without placement is for one device"
    sizes = sizes_of(config, placement.weights, placement.lm_head, context, plan.mode, predictor, host)
    splits = [(layer.split, guess) for layer, guess in zip(plan.layers, sizes.predictor, strict=True)]
    near = [
        sizes.attention + sizes.cache + guess + sizes.row * (split.gate + 2 * split.hot)
        for split, guess in splits
        if split is not None and split.attention
    ]
    need = sum(near) + placement.head * sizes.head + (sizes.fixed if near else 0)
    on_gpu = fast.type == "cuda"
    free = torch.cuda.mem_get_info(fast)[0] if on_gpu else machine.available_memory()
    if need > free:
        raise MachineError(
            f"plan: takes {show_size(need)} {'of the GPU' if on_gpu else 'of memory for its fast part'}, but "
            f"{show_size(free)} are free now; close other programs, or make a plan for a lower --budget"
        )
    if limit is not None and need > limit.left + GROWTH:
        raise MachineError(
            f"plan: takes {show_size(need)} of the GPU, but a budget of {show_size(limit.budget)} leaves "
            f"{show_size(limit.left)} beside a context of {show_size(limit.context)}; make a plan for a higher --budget"
        )


class Sharing:
    """What the shared blocks of a model have in common.

    Args:
        division: of the model.
        tensors: divided so.
    """

    def __init__(self, division: Division, tensors: ModelWeights) -> None:
        self.division, self.link = division, Link(division.fast, division.slow)
        cold = [part for own in tensors.layers if own.cold for part in (own.cold.gate, own.cold.up, own.cold.down)]
        self.buffer = DoubleBuffer.large_enough(division.fast, cold) if cold else None

    def ffn(
        self, config: ModelConfig, layer: int, own: LayerWeights, cold: ColdWeights, mode: str,
        predictor: LayerPredictor | None,
    ) -> HybridFFN:  # fmt: skip
        """The block of a layer that two devices share."""
        order = self.division.layers[layer].order
        assert order is not None and own.up is not None and self.buffer is not None, "the layer is divided"
        selector = None if predictor is None else Selector(predictor.in_order(order), own.gate, cold.gate)
        hot, rest = (own.gate, own.up, own.down), (cold.gate, cold.up, cold.down)
        return HybridFFN(
            own.ffn_norm, config.norm_eps, hot, rest, order, config.activation, config.residual_scale, mode, self.link,
            self.buffer, selector,
        )  # fmt: skip
