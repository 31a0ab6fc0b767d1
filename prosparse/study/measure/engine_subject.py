"""Our own engine under measurement: its prefill, with every FFN block in view."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.linear import gemm_transposed
from prosparse.kernels.quant import as_matrix

from ...engine import Engine
from ...model.decoder import Decoder
from ...plan import fingerprint
from ...weights.neuron_profile import content_key
from ..compare import losses
from ..watch import AnyFFN, open_ffns, read_window, watched
from .subject import Facts, Look


class EngineSubject:
    """An `Engine`; windows are read one by one, since attention is computed sequence by sequence.

    Args:
        engine: its weights are shared, nothing of it is changed.
        name: for reports; None for none in particular.
    """

    together = False

    def __init__(self, engine: Engine, name: str | None = None) -> None:
        self.engine, config = engine, engine.config
        self._ffns = open_ffns(engine)
        decoder = engine.decoder
        pairs = zip(decoder.blocks, self._ffns, strict=True)
        norms = [norm for (attention, _), ffn in pairs for norm in (attention.norm, ffn.norm)]
        self.facts = Facts(
            name=name or config.family,
            fingerprint=fingerprint(config),
            content=content_key([*norms, *([] if decoder.final_norm is None else [decoder.final_norm])]),
            activation=str(config.activation),
            gated=config.gated,
            layers=config.layers,
            neurons=config.neurons,
            hidden=config.hidden,
            vocab=config.vocab,
            context=engine.context,
            weights=engine.weights,
            device=str(decoder.device),
        )

    def read(self, windows: Tensor, look: Look | None = None) -> None:
        decoder = self._watched(look, False)
        for window in windows:
            for _ in self._prefill(decoder, window):
                pass

    @torch.inference_mode()
    def losses(self, windows: Tensor, look: Look | None = None, relu: bool = False) -> Tensor:
        decoder = self._watched(look, relu)
        rows = []
        for window in windows:
            logits = [decoder.logits(hidden).cpu().double() for hidden in self._prefill(decoder, window[:-1])]
            rows.append(losses(torch.cat(logits), window[1:]))
        return torch.stack(rows)

    @torch.inference_mode()
    def down(self, layer: int, h: Tensor) -> Tensor:
        return gemm_transposed(h.flatten(0, -2), self._ffns[layer].down).view(*h.shape[:-1], -1)

    @torch.inference_mode()
    def down_norms(self, layer: int) -> Tensor:
        return as_matrix(self._ffns[layer].down.codes, self.engine.config.hidden).norm(dim=1)

    def _prefill(self, decoder: Decoder, window: Tensor) -> Iterator[Tensor]:
        return read_window(self.engine, decoder, window)

    def _watched(self, look: Look | None, relu: bool) -> Decoder:
        """The engine's decoder over the same weights, with other eyes on its FFNs."""
        ffns = [_with_relu(ffn) if relu and ffn.activation.kind == "fatrelu" else ffn for ffn in self._ffns]

        def view(layer: int, residual: Tensor, x: Tensor, value: Tensor, h: Tensor) -> Tensor | None:
            changed = None if look is None else look(layer, x[None], value[None], h[None])
            return None if changed is None else changed[0]

        return watched(self.engine.decoder, ffns, view)


def _with_relu(ffn: AnyFFN) -> AnyFFN:
    ffn = copy.copy(ffn)
    ffn.activation = Activation("relu", on_up=ffn.activation.on_up)
    return ffn
