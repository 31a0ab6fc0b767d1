"""The same at load time: patched(), AutoModelForCausalLM, and the classes that transformers lacks.

Inside patched(), transformers builds our subclass of a gated FFN's class, because the name in the module that defines
it stands for ours. Loading ends with `model.eval()`, and there such an FFN, whose weights are now in place, becomes an
accelerated one. (transformers' own registry for this, `register_patch_mapping`, fails in 5.17 where torchvision is not
installed: it imports every module that an alias stands for.)
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP

from .. import machine
from ..config.hf import FAMILIES
from ..errors import UserError
from ..plan import UNPREDICTED
from .accelerated import install
from .activation import FATReLU, set_thresholds
from .bamboo import BambooConfig, BambooForCausalLM, BambooMLP
from .find import examine
from .glu import AcceleratedGLU, weights_of
from .minicpm import MiniCPMConfig, MiniCPMForCausalLM
from .sparsellama import SparseLlamaConfig, SparseLlamaForCausalLM

log = logging.getLogger("prosparse")

OURS: dict[type[PreTrainedConfig], type[nn.Module]] = {
    MiniCPMConfig: MiniCPMForCausalLM,
    SparseLlamaConfig: SparseLlamaForCausalLM,
    BambooConfig: BambooForCausalLM,
}
FFN_CLASSES = (LlamaMLP, MistralMLP, BambooMLP)
_lock = threading.RLock()  # the names are global: one thread loads at a time


def register() -> None:
    """Teach transformers minicpm, sparsellama, bamboo and the activation fatrelu; may be called again."""
    ACT2FN["fatrelu"] = FATReLU
    for config_class, model_class in OURS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        transformers.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


@contextmanager
def patched(mode: str = "auto") -> Iterator[None]:
    """Inside, transformers loads models that are already accelerated, and opens MiniCPM, ProSparse and Bamboo folders.

    Models of the Llama and Mistral classes and ours are accelerated as they are loaded (`from_pretrained`; a model made
    by `from_config` becomes one with its `eval()`); use `accelerate` on any other. Folders are opened without their
    remote code, also those whose config has no model_type. One thread loads at a time; do not load models that should
    stay as they are in another one.

    Args:
        mode: as of `accelerate`.

    Raises:
        UserError: unknown mode; while loading, mode exact for an activation that makes no zeros.
    """
    if mode not in ("auto", *UNPREDICTED):
        raise UserError(f"patched: mode is {mode!r}; supported are auto, {', '.join(UNPREDICTED)}")
    order = _Order(mode, Counter())
    with _lock, ExitStack() as undo:
        register()
        for dense in FFN_CLASSES:
            _replace(undo, sys.modules[dense.__module__], dense.__name__, loading_class(dense, order))
        original = PreTrainedConfig.__dict__["get_config_dict"]
        completed = classmethod(functools.partial(_complete_config_dict, original))
        _replace(undo, PreTrainedConfig, "get_config_dict", completed)
        yield
    for outcome, count in order.outcomes.items():
        log.info("patched: %d FFNs %s", count, outcome)


def _replace(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, owner.__dict__[name])
    setattr(owner, name, value)


class AutoModelForCausalLM(transformers.AutoModelForCausalLM):
    """transformers' AutoModelForCausalLM inside `patched()`."""

    @classmethod
    def from_pretrained(cls, *args: Any, mode: str = "auto", **kwargs: Any) -> Any:
        """As transformers' `from_pretrained`; `mode` as of `accelerate`."""
        with patched(mode):
            return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, mode: str = "auto", **kwargs: Any) -> Any:
        """As transformers' `from_config`, in eval mode."""
        with patched(mode):
            return super().from_config(config, **kwargs).eval()


def _complete_config_dict(original: Any, cls: type[PreTrainedConfig], *args: Any, **kwargs: Any) -> tuple[dict, dict]:
    """get_config_dict, with the model_type that an old folder lacks, and without the code that it names."""
    config, rest = original.__get__(None, cls)(*args, **kwargs)
    by_class = {family.architecture: model_type for model_type, family in FAMILIES.items()}
    if not config.get("model_type"):
        named = [by_class[name] for name in config.get("architectures") or [] if name in by_class]
        config |= {"model_type": named[0]} if named else {}
    if config.get("model_type") in {ours.model_type for ours in OURS}:
        config.pop("auto_map", None)
    return config, rest


class _Order:
    """What one `patched()` wants: the mode; and what became of it: outcomes, for its log line."""

    def __init__(self, mode: str, outcomes: Counter[str]) -> None:
        self.mode, self.outcomes = mode, outcomes


def loading_class(dense_class: type[nn.Module], order: _Order) -> type[nn.Module]:
    """A subclass of a gated FFN's class that becomes an accelerated one when it is put into eval mode."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        dense_class.train(self, mode)
        if not mode:
            _settle(self, dense_class, order)
        return self

    return type(dense_class.__name__, (dense_class,), {"train": train, "__module__": dense_class.__module__})


def _settle(module: nn.Module, dense_class: type[nn.Module], order: _Order) -> None:
    """Once its weights are there: the class that transformers would have built, accelerated where that can be."""
    module.__class__ = dense_class
    set_thresholds(module, module.config)
    site = examine(dense_class.__name__, module, module.config, {})
    if isinstance(site, str):
        outcome = f"stay as they are: {dense_class.__name__}: {site}"
    elif order.mode != "dense" and not site.activation.makes_zeros:
        if order.mode == "exact":
            raise UserError(
                f"patched: mode exact needs an activation that makes exact zeros, but {dense_class.__name__} uses "
                f"{site.activation}; use mode auto or dense"
            )
        outcome = f"stay as they are: {site.activation} makes no exact zeros, so there is nothing to skip"
    else:
        mode = "exact" if order.mode == "auto" else order.mode
        install(module, weights_of(module)[2], AcceleratedGLU, site.activation, mode, dense_class)
        outcome = f"run {mode} ({site.activation}) on {machine.kernel_name(weights_of(module)[0].device)}"
    order.outcomes[outcome] += 1
