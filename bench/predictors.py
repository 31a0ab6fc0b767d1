"""Subject "predictors": whole tokens of mode predicted against exact and dense, on synthetic weights of a real shape.

    low_rank      the part of the gate that `synth` planted, int8 and int4, with one margin per layer: recall 0.95
    low_bit_gate  the gate in int4, with one margin per layer: recall 0.999
    oracle        the true set of every token, at the price of scanning sign bits: what no selector can do better

Margins are fitted to the tokens that are timed, so a recall is what was asked for; what the harness shows is the speed
at that recall. How well a predictor does on text that it has not seen is `prosparse predictor eval`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prosparse.config.shapes import shape as shape_named
from prosparse.engine.load import assemble
from prosparse.errors import UserError
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.weight import in_format
from prosparse.model.decoder import FFN, Decoder
from prosparse.placement import choose
from prosparse.sparsity import PlainFFN, PlainPredictedFFN, PredictedFFN, Selector
from prosparse.sparsity.ffn import GatedFFN
from prosparse.weights.predictor import LayerPredictor
from prosparse.weights.synthetic import Knobs, PlantedBases, synthetic_weights, walk

from .check import require_same_logits
from .clock import interleave, speedup
from .decode import DEFAULT_RUN, fit_layers
from .modes import CHECKED, Run, decode_row, in_mode, likeliest, prefilled, step_logits
from .probe import Probe
from .progress import Progress, stage
from .row import Row

RECALL = {"low_rank": 0.95, "low_bit_gate": 0.999, "oracle": 1.0}


def compare_predictors(
    shape: str = "minicpm-s-1b",
    knobs: Knobs | float = 0.88,
    selectors: Sequence[str] = tuple(RECALL),
    weights: str = "bf16",
    run: Run = DEFAULT_RUN,
    progress: Progress | None = None,
) -> list[Row]:
    """Time dense, exact and each selector over the same weights and tokens in one interleaved run.

    Args:
        shape, knobs, weights, run, progress: see `decode.compare`.
        selectors: of `RECALL`.

    Returns:
        Rows of dense and exact, then one per selector: "part" names it, "quality" its recall and ratio to exact.

    Raises:
        UserError: no such shape, selector or format.
        MachineError: not enough memory, or a selector that names every neuron does not give exact's logits.
    """
    if unknown := set(selectors) - set(RECALL):
        raise UserError(f"bench: selector is {min(unknown)!r}; supported are {', '.join(RECALL)}")
    full = shape_named(shape)
    config = fit_layers(full, weights)
    tensors, settled = synthetic_weights(config, weights, knobs, progress=stage(progress, "making weights"))
    dense = assemble(config, tensors, choose(config, "dense"), run.pp + run.tg)
    decoders = {"dense": dense, "exact": in_mode(dense, "exact")}
    tokens = walk(config.vocab, run.pp + run.tg)[None]
    if progress is not None:
        progress("recording", 0, 1)
    seen = Recording(decoders["exact"], tokens, run.pp)
    bases = PlantedBases(config.hidden, 0, "cpu")
    choices = {
        name: [_choice(name, f, bases[i], seen.inputs[i, :, 0].mean()) for i, (_, f) in enumerate(dense.blocks)]
        for name in selectors
    }
    shares: dict[str, tuple[float, float]] = {}
    for name, own in choices.items():
        decoders[name] = _predicted(dense, own)
        _check(decoders, name, own, tokens[:, : run.pp + CHECKED], run.pp)
        shares[name] = (1.0, seen.active_share) if name == "oracle" else seen.fit(own, RECALL[name])
    sessions = {name: prefilled(each, tokens[:, : run.pp], tokens.shape[1]) for name, each in decoders.items()}

    def step_of(name: str) -> Callable[[int], object]:
        def call(number: int) -> list[int]:
            at = number % run.tg
            if name == "oracle":
                seen.reveal(choices[name], at)
            at += run.pp
            return likeliest(sessions[name].decode(tokens[:, at : at + 1], (0,), (at,)))

        return call

    calls: dict[str, Callable[[int], object]] = {name: step_of(name) for name in decoders}
    timings = interleave(
        {**calls, "probe": Probe()}, run.tg * run.repeat, budget_s=run.budget_s, progress=stage(progress, "timing")
    )
    note = f"{config.layers} of {full.layers} layers: little memory is free" if config.layers < full.layers else None
    labels: dict[str, Any] = {"shape": shape, "synthetic": settled.as_dict(), "note": note}
    rows = [decode_row(name, decoders[name], sessions[name], timings, run, labels) for name in ("dense", "exact")]
    for name, (recall, share) in shares.items():
        ratio = speedup(timings["exact"], timings[name])
        row = decode_row(name, decoders[name], sessions[name], timings, run, labels)
        quality = {
            "recall": round(recall, 4),
            "exact_ratio": round(ratio.value, 3),
            "exact_ratio_95": [round(ratio.low, 3), round(ratio.high, 3)],
        }
        rows.append(row | {"mode": "predicted", "part": name, "quality": quality, "predicted_sparsity": 1 - share})
    return [row | {"subject": "predictors"} for row in rows]


class Recording:
    """What an exact decoder saw and opened in every timed step of one sequence.

    Args:
        decoder: of mode exact.
        tokens: [1, pp + steps] int64.
        pp: of them the prompt.
    """

    def __init__(self, decoder: Decoder, tokens: Tensor, pp: int) -> None:
        config, steps = decoder.config, tokens.shape[1] - pp
        self.active = torch.zeros(steps, config.layers, config.neurons, dtype=torch.bool)
        self.inputs = torch.zeros(config.layers, steps, config.hidden)
        session = prefilled(decoder, tokens[:, :pp], tokens.shape[1])
        ffns: list[Any] = [ffn for _, ffn in decoder.blocks]
        for step in range(steps):

            def watch(layer: int, residual: Tensor, step: int = step) -> None:
                x = ffns[layer].normed(residual)
                found = gate_select(x, ffns[layer].gate, ffns[layer].activation)
                self.active[step, layer, found.index[: int(found.count)].long()] = True
                self.inputs[layer, step] = x[0]

            with torch.inference_mode():
                at = pp + step
                decoder.decode(tokens[:, at : at + 1], (0,), (at,), session.cache, session.tally, watch)
        self.active_share = float(self.active.float().mean())
        self._offsets = torch.where(self.active, math.inf, -math.inf).numpy()

    def fit(self, selectors: Sequence[Selector], recall: float) -> tuple[float, float]:
        """Set one margin per layer such that this share of what is active is named; returns recall and share named."""
        found = named = 0
        for layer, selector in enumerate(selectors):
            active = self.active[:, layer]
            scores = selector.scores(self.inputs[layer], self.inputs[layer])
            needed = scores[active].sort().values
            if needed.numel():
                selector.guess.offset.sub_(needed[int((1 - recall) * needed.numel())])
            hit = ~(selector.scores(self.inputs[layer], self.inputs[layer]) < 0)
            found, named = found + int((hit & active).sum()), named + int(hit.sum())
        return found / max(1, int(self.active.sum())), named / self.active.numel()

    def reveal(self, selectors: Sequence[Selector], step: int) -> None:
        """Make selectors name what is active in a step. By numpy: torch would wake its threads, which then spin."""
        for layer, selector in enumerate(selectors):
            selector.guess.offset.numpy()[:] = self._offsets[step, layer]


def _choice(name: str, ffn: Any, basis: Tensor, constant: Tensor) -> Selector:
    """`constant` is the mean of channel 0, whose column of a synthetic gate is a bias and not in the basis."""
    if name != "low_rank":
        kind = "sign_bits" if name == "oracle" else "low_bit_gate"
        return Selector(LayerPredictor(kind, torch.zeros(ffn.gate.shape[0])), ffn.gate)
    gate = ffn.gate.values()
    second = in_format(gate @ basis.t(), "int4")
    offset = gate[:, 0] * constant
    return Selector(LayerPredictor("low_rank", offset, in_format(basis, "int8"), second), ffn.gate)


def _predicted(decoder: Decoder, selectors: Sequence[Selector]) -> Decoder:
    blocks = [
        (attention, _with_selector(ffn, selector))
        for (attention, ffn), selector in zip(decoder.blocks, selectors, strict=True)
    ]
    return decoder.with_blocks(blocks)


def _with_selector(ffn: FFN, selector: Selector) -> FFN:
    if isinstance(ffn, PlainFFN):
        return PlainPredictedFFN(*ffn.parts(), selector=selector)
    assert isinstance(ffn, GatedFFN), "shapes have no experts"
    return PredictedFFN(*ffn.parts(), selector=selector)


def _check(decoders: dict[str, Decoder], name: str, selectors: Sequence[Selector], tokens: Tensor, pp: int) -> None:
    """With every neuron named the logits are those of exact. Leaves the offsets as they were."""
    kept = [selector.guess.offset.clone() for selector in selectors]
    for selector in selectors:
        selector.guess.offset.fill_(math.inf)
    expected = step_logits(decoders["exact"], tokens, pp)
    require_same_logits(f"selector {name}", step_logits(decoders[name], tokens, pp), expected)
    for selector, offset in zip(selectors, kept, strict=True):
        selector.guess.offset.copy_(offset)
