"""A transformers model under measurement, watched with forward hooks that are gone when a pass is over."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.neuron_profile import content_key
from ..compare import losses
from .find_ffns import Found, find_ffns, is_linear_relu, rows_of
from .subject import Facts, Look


class LiveSubject:
    """A model with one FFN per layer.

    Args:
        model: from transformers; its training mode and its hooks are as before after each pass.
        name: for reports; None is the name its config has.

    Raises:
        UnsupportedError: no FFNs that are known.
    """

    together = True

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        self.model = model
        self._ffns = find_ffns(model)
        config: Any = getattr(model, "config", None)
        first = self._ffns[0]
        neurons, hidden = rows_of(first.down).shape
        act = str(getattr(first.act, "__name__", None) or first.act).removesuffix("()")
        norms = [weight for weight in model.parameters() if weight.dim() == 1 and weight.numel() == hidden]
        sizes = [len(self._ffns), neurons, hidden]
        self.facts = Facts(
            name=name or getattr(config, "_name_or_path", "") or type(model).__name__,
            fingerprint=hashlib.sha256(f"{type(model).__name__} {sizes} {act}".encode()).hexdigest()[:16],
            content=content_key(norms),
            activation=act,
            gated=first.gated,
            layers=len(self._ffns),
            neurons=neurons,
            hidden=hidden,
            vocab=getattr(config, "vocab_size", None) or 2**31,
            context=getattr(config, "max_position_embeddings", None) or 2**31,
            weights=str(first.down.weight.dtype).removeprefix("torch."),
            device=str(first.down.weight.device),
        )
        parameters = inspect.signature(model.forward).parameters
        self._keep_one = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.inference_mode()
    def read(self, windows: Tensor, look: Look | None = None) -> None:
        with self._watched(windows.shape, look, False):
            self._call(windows, **self._keep_one)

    @torch.inference_mode()
    def losses(self, windows: Tensor, look: Look | None = None, relu: bool = False) -> Tensor:
        read = windows[:, :-1]
        with self._watched(read.shape, look, relu):
            logits = self._call(read).logits.cpu().double()
        return losses(logits.flatten(0, 1), windows[:, 1:].flatten()).view(len(windows), -1)

    @torch.inference_mode()
    def down(self, layer: int, h: Tensor) -> Tensor:
        return h @ rows_of(self._ffns[layer].down)

    @torch.inference_mode()
    def down_norms(self, layer: int) -> Tensor:
        return rows_of(self._ffns[layer].down).float().norm(dim=1)

    def _call(self, windows: Tensor, **keywords: Any) -> Any:
        return self.model(windows.to(self.facts.device), use_cache=False, **keywords)

    @contextlib.contextmanager
    def _watched(self, shape: torch.Size, look: Look | None, relu: bool) -> Iterator[None]:
        training = self.model.training
        self.model.eval()  # dropout would make other zeros
        handles: list[Any] = []
        try:
            for layer, ffn in enumerate(self._ffns):
                if look is not None or relu:
                    handles += _Watcher(layer, ffn, shape, look, relu).hooks()
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.model.train(training)


class _Watcher:
    """The hooks of one FFN: input and gate are noted on the way, and shown when the activations enter down."""

    def __init__(self, layer: int, ffn: Found, shape: torch.Size, look: Look | None, relu: bool) -> None:
        self.layer, self.ffn, self.shape, self.look = layer, ffn, shape, look
        self.x = self.value = torch.empty(0)
        self.relu = relu and is_linear_relu(ffn.act, ffn.down.weight.device)  # type: ignore[arg-type]

    def hooks(self) -> list[Any]:
        first, down = self.ffn.first, self.ffn.down
        handles: list[Any] = [first.register_forward_hook(self._saw_first)]
        if isinstance(self.ffn.act, nn.Module):
            handles.append(self.ffn.act.register_forward_hook(self._saw_act))
        return [*handles, down.register_forward_pre_hook(self._enters_down)]

    def _saw_first(self, module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> None:
        self.x = arguments[0]
        if not isinstance(self.ffn.act, nn.Module):
            self.value = self.ffn.act(out[..., : rows_of(self.ffn.down).shape[0]])

    def _saw_act(self, module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
        self.value = torch.relu(arguments[0]) if self.relu else out
        return self.value

    def _enters_down(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.look is None:
            return None
        h = arguments[0]
        rows = h.reshape(*self.shape, h.shape[-1])  # OPT flattens windows and tokens
        value = self.value.reshape(rows.shape) if self.ffn.gated else rows
        changed = self.look(self.layer, self.x.reshape(*self.shape, -1), value, rows)
        self.x = self.value = torch.empty(0)
        return None if changed is None else (changed.reshape(h.shape), *arguments[1:])
