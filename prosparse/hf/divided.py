"""A live transformers model laid out on two devices as a placed plan says, and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prosparse.kernels.weight import Weight

from ..config import ModelConfig
from ..engine.memory_limit import Grant
from ..engine.stats import cold_of
from ..plan import Plan
from ..sparsity import HybridFFN, Selector
from ..sparsity.double_buffer import DoubleBuffer
from ..sparsity.link import Link
from ..weights.divide import Cut, Division
from ..weights.memory import Place
from ..weights.model_weights import ColdWeights
from ..weights.tables import names_of
from .accelerated import Accelerated, install, uninstall
from .find import Site, down_parameter
from .glu import CHILDREN, weights_of
from .guessing import guess_of
from .movers import Moved, Mover
from .shared import SharedGLU, stay

ATTRIBUTE = "prosparse_division"  # of the model


class LiveDivision:
    """A model's. Making one lays the model out; an error on the way leaves it as it was.

    Args:
        model: on the CPU.
        sites: its FFNs, not accelerated.
        config: what it is.
        plan: of it, with a placement.
        division: where the plan puts what.
        grant: what the memory of the fast device is held to.
    """

    def __init__(
        self, model: nn.Module, sites: list[Site], config: ModelConfig, plan: Plan, division: Division,
        grant: Grant | None,
    ) -> None:  # fmt: skip
        self.model, self.sites, self.config, self.plan, self.division = model, sites, config, plan, division
        self._grant, self._undo = grant, list[Callable[[], None]]()
        self._fast, self._slow = Place(division.fast), Place(division.slow)
        try:
            self._lay_out()
        except BaseException:
            self.take_back()
            raise

    def take_back(self) -> None:
        """The model as it was, all of it on the CPU."""
        while self._undo:
            self._undo.pop()()
        if self._grant is not None:
            self._grant.release()

    def cold(self) -> dict[str, Any]:
        """What the slow device did in counted steps, as `cold` of `engine.stats`."""
        shared = [site.module for site in self.sites if isinstance(site.module, SharedGLU)]
        steps = max((int(own.prosparse_steps) for own in shared), default=0)
        slow = sum(not cut.attention for cut in self.division.layers)
        return cold_of([own.prosparse_tally.tolist() for own in shared], slow, steps)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _lay_out(self) -> None:
        self._fast.reserve(self.fast_bytes())
        cold = self._room_for_cold()
        shared = [part for own in cold if own is not None for part in (own.gate, own.up, own.down)]
        link = Link(self.division.fast, self.division.slow)
        buffer = DoubleBuffer.large_enough(self.division.fast, shared) if shared else None
        for layer, (site, cut, own) in enumerate(zip(self.sites, self.division.layers, cold, strict=True)):
            if cut.attention:
                for parameter in self._around(layer):
                    self._move(parameter)
            if own is not None and buffer is not None:
                self._share(layer, site, cut, own, link, buffer)
            else:
                self._keep_whole(layer, site, cut)
        if self.division.head:
            for parameter in self._head():
                self._move(parameter)
        self._hook()

    def fast_bytes(self) -> int:
        """Bytes of the weights that the fast device gets."""
        nbytes = sum(parameter.nbytes for parameter in self._head()) if self.division.head else 0
        for layer, (site, cut) in enumerate(zip(self.sites, self.division.layers, strict=True)):
            if cut.attention:
                row = self.config.hidden * down_parameter(site.module).element_size()
                nbytes += sum(parameter.nbytes for parameter in self._around(layer)) + (cut.gate + 2 * cut.hot) * row
        return nbytes

    def _layer(self, layer: int) -> nn.Module:
        return self.model.get_submodule(names_of(self.config).layer.attention_norm.format(layer).rsplit(".", 2)[0])

    def _around(self, layer: int) -> list[nn.Parameter]:
        """What a layer has beside its FFN's matrices."""
        own = {id(parameter) for parameter in weights_of(self.sites[layer].module)}
        return [parameter for parameter in self._layer(layer).parameters() if id(parameter) not in own]

    def _head(self) -> list[nn.Parameter]:
        names = names_of(self.config)
        return [self.model.get_parameter(name) for name in (names.lm_head, names.final_norm)]

    def _room_for_cold(self) -> list[ColdWeights | None]:
        """Uninitialised rows for the cold part of each layer, in one block."""
        config, dtype = self.config, down_parameter(self.sites[0].module).dtype
        rows = [
            None if cut.order is None else (config.neurons - cut.gate, *[config.neurons - cut.hot] * 2)
            for cut in self.division.layers
        ]
        row = config.hidden * dtype.itemsize
        self._slow.reserve(sum(sum(own) * row for own in rows if own is not None))
        return [
            None
            if own is None
            else ColdWeights(*(Weight(self._slow.empty((count, config.hidden), dtype=dtype)) for count in own))
            for own in rows
        ]

    def _move(self, parameter: nn.Parameter, transposed: bool = False) -> None:
        """To the fast device."""
        home, data = parameter.device, parameter.data
        there = self._fast.copy(data.t()).t() if transposed else self._fast.copy(data)

        def undo() -> None:
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=home).copy_(there)

        self._undo.append(undo)
        parameter.data = there

    def _keep_whole(self, layer: int, site: Site, cut: Cut) -> None:
        """An FFN that is on one device."""
        gate, up, down = weights_of(site.module)
        if cut.attention:
            self._move(gate)
            self._move(up)
            self._move(down, transposed=True)
        module, mode = site.module, self.plan.layers[layer].mode

        def undo() -> None:
            assert isinstance(module, Accelerated), "undone once"
            uninstall(module, None if cut.attention else down)  # what was moved is contiguous again when it is back

        guess = guess_of(site) if mode == "predicted" else None
        install(module, down, site.mixin, site.activation, mode, site.dense_class, guess)
        self._undo.append(undo)

    def _share(self, layer: int, site: Site, cut: Cut, cold: ColdWeights, link: Link, buffer: DoubleBuffer) -> None:
        """An FFN that both devices have a part of."""
        module, mode, order = site.module, self.plan.layers[layer].mode, cut.order
        assert order is not None, "the layer is divided"
        hot = []
        for child, first, there in zip(
            CHILDREN, (cut.gate, cut.hot, cut.hot), (cold.gate, cold.up, cold.down), strict=True
        ):
            linear: Any = getattr(module, child)
            rows = linear.weight.data.t() if child == CHILDREN[2] else linear.weight.data
            torch.index_select(rows, 0, order[first:], out=there.codes)
            near = self._fast.copy(rows[order[:first]])
            self._hide(linear, order, [near, there.codes], child == CHILDREN[2])
            hot.append(Weight(near))
        selector = None
        if mode == "predicted":
            assert site.predictor is not None, "a predicted layer has a predictor"
            selector = Selector(site.predictor.in_order(order), hot[0], cold.gate)
        gate, up, down = hot
        ffn = HybridFFN(
            torch.empty(0), self.config.norm_eps, (gate, up, down), (cold.gate, cold.up, cold.down), order,
            site.activation, 1.0, mode, link, buffer, selector,
        )  # fmt: skip
        guess = None if selector is None else selector.guess
        install(module, None, SharedGLU, site.activation, mode, site.dense_class, guess, self.division.fast)
        shared: Any = module

        def undo() -> None:
            del shared.prosparse_ffn
            uninstall(shared, None)

        shared.prosparse_ffn = ffn
        self._undo.append(undo)

    def _hide(self, linear: nn.Linear, order: Tensor, parts: list[Tensor], transposed: bool) -> None:
        """Show a weight without memory in place of one whose rows, in this order, lie in two parts."""
        parameter, shape = linear.weight, linear.weight.shape
        held: Any = linear._parameters
        shown = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

        def undo() -> None:
            whole = torch.empty(shape, dtype=parameter.dtype)
            rows, cut = whole.t() if transposed else whole, len(parts[0])
            rows[order[:cut]], rows[order[cut:]] = parts[0].to(whole.device), parts[1]
            parameter.data = whole
            held["weight"] = parameter

        self._undo.append(undo)
        held["weight"] = shown
        parameter.data = torch.empty(0, dtype=parameter.dtype)  # the object is kept, its memory is not

    def _hook(self) -> None:
        own = self.model.__dict__  # `.to()` and its like would move what comes before the first FFN, and then fail
        own["_apply"] = stay
        self._undo.append(lambda: own.pop("_apply"))
        names, division, moved = names_of(self.config), self.division, Moved()
        head = division.fast if division.head else division.slow
        modules = {
            self.model.get_submodule(name.removesuffix(".weight")): head for name in (names.final_norm, names.lm_head)
        }
        modules[self.model.get_submodule(names.embed.removesuffix(".weight"))] = (
            head if self.config.tied_embeddings else division.slow
        )
        for layer, cut in enumerate(division.layers):
            modules[self._layer(layer)] = division.fast if cut.attention else division.slow
        for module, device in modules.items():
            mover = Mover(device, moved, module is self._layer(0))
            handle = module.register_forward_pre_hook(mover, with_kwargs=True)
            self._undo.append(handle.remove)


def division_of(model: nn.Module) -> LiveDivision | None:
    """How a model is divided; None where it is not."""
    return model.__dict__.get(ATTRIBUTE)
