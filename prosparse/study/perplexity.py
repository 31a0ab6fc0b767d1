"""How well a mode and a weight format predict a text, beside the dense model in fp32 on the same windows.

    perplexity = exp(mean loss in nats)        bits per byte = sum of losses / ln 2 / bytes of text

Teacher forcing. The engine under test computes every prediction with decode steps, since prefill is dense in every
mode: up to 16 tokens of a window per step where a token's active neurons do not depend on its company (dense, exact),
else one. The baseline is prefilled. Memory holds the two models and one window.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.checks import MAX_ROWS

from .. import machine
from ..engine import Engine
from ..engine.session import Session
from ..engine.stats import activation_sparsity
from ..errors import MachineError, UserError
from .compare import Interval, bootstrap, kl_divergence, losses
from .windows import Windows, cut, read_text

WINDOW = 512  # tokens, where the context allows: long enough that context is no longer what the loss depends on
PREDICTIONS = 10_000  # enough for an interval of the ratio below a tenth of a percent in bf16 against fp32
ALONE_OR_TOGETHER = ("dense", "exact")  # a predicted set is the union over a step, which would flatter it


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` found. Losses and divergences are in nats per token; the baseline is dense in fp32.

    Args:
        mode, weights, lm_head, kernels: of the engine under test.
        window, stride, windows, predictions, bytes_per_token: what was measured of the text.
        tokens_per_step: of the decode steps of the engine under test.
        loss, perplexity, bits_per_byte: of the engine under test; bits per byte is None where the text has no bytes.
        activation_sparsity: {"mean", "layers"} over all measured tokens.
        baseline_loss, baseline_perplexity: of the baseline.
        perplexity_ratio: perplexity over that of the baseline.
        kl_divergence: of the baseline from the engine under test.
        top1_agreement: share of predictions whose likeliest token is the same.
    """

    mode: str
    weights: str
    lm_head: str
    kernels: str
    window: int
    stride: int
    windows: int
    predictions: int
    bytes_per_token: float
    tokens_per_step: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    activation_sparsity: dict[str, Any] | None
    baseline_loss: float
    baseline_perplexity: float
    perplexity_ratio: Interval
    kl_divergence: Interval
    top1_agreement: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def perplexity(
    engine: Engine,
    baseline: Engine,
    text: str | Path | None = None,
    *,
    window: int | None = None,
    predictions: int = PREDICTIONS,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Compare an engine with the dense fp32 engine of the same model on a text.

    Args:
        engine: under test, in any mode and weight format.
        baseline: `load(model, mode="dense", weights="fp32")`; may be `engine` itself.
        text: a UTF-8 file; None is the packaged held-out excerpt.
        window: predictions per window, at most the context of both; None is 512 or the context.
        predictions: how many to make, about; windows are spread evenly over the text.
        progress: called with (done, total) predictions.

    Raises:
        UserError: a text that cannot be used, sizes out of range, engines of different models.
        MachineError: logits that are not finite.
    """
    if (engine.config.vocab, engine.config.layers) != (baseline.config.vocab, baseline.config.layers):
        raise UserError("perplexity: the engine and the baseline hold different models; load the same one twice")
    length = _window(window, min(engine.context, baseline.context))
    if isinstance(predictions, bool) or not isinstance(predictions, int) or predictions < 1:
        raise UserError(f"perplexity: predictions must be a whole number of at least 1, got {predictions!r}")
    windows = cut(read_text(text), engine.tokenizer, length, predictions)
    measured = _Measurement(engine, baseline, windows, progress)
    return measured.run()


def _window(window: int | None, context: int) -> int:
    if window is None:
        return min(WINDOW, context)
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= context:
        raise UserError(f"perplexity: window must be from 1 to the context of {context} tokens, got {window!r}")
    return window


class _Measurement:
    """The loop over windows; what it keeps is one number per prediction and quantity."""

    def __init__(
        self, engine: Engine, baseline: Engine, windows: Windows, progress: Callable[[int, int], None] | None
    ) -> None:
        self.engine, self.baseline, self.windows, self.progress = engine, baseline, windows, progress
        self.rows = MAX_ROWS if engine.plan.mode in ALONE_OR_TOGETHER else 1
        length = windows.inputs.shape[1]
        self.session = Session(engine.decoder, engine.kv_dtype, 1, length)
        self.reference = Session(baseline.decoder, baseline.kv_dtype, 1, length)
        shape = windows.targets.shape
        self.loss, self.baseline_loss, self.kl, self.agrees = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(4)
        )

    def run(self) -> Perplexity:
        total = self.windows.targets.numel()
        for number in range(len(self.windows.targets)):
            self._measure(number)
            if self.progress is not None:
                self.progress((number + 1) * self.windows.targets.shape[1], total)
        return self._report()

    @torch.inference_mode()
    def _measure(self, number: int) -> None:
        inputs, targets = self.windows.inputs[number], self.windows.targets[number]
        hidden = torch.cat(list(self.reference.prefill(inputs)))
        for start in range(0, len(inputs), self.rows):
            part = slice(start, start + self.rows)
            ours = self.session.decode(inputs[None, part], (0,), (start,)).cpu().double()
            theirs = self.baseline.decoder.logits(hidden[part]).cpu().double()
            _check_finite(ours, theirs)
            self.loss[number, part] = losses(ours, targets[part])
            self.baseline_loss[number, part] = losses(theirs, targets[part])
            self.kl[number, part] = kl_divergence(theirs, ours)
            self.agrees[number, part] = (ours.argmax(1) == theirs.argmax(1)).double()

    def _report(self) -> Perplexity:
        engine, windows = self.engine, self.windows
        predictions, n_bytes = windows.targets.numel(), int(windows.target_bytes.sum())
        loss, baseline_loss = float(self.loss.mean()), float(self.baseline_loss.mean())
        return Perplexity(
            mode=engine.plan.mode,
            weights=engine.weights,
            lm_head=engine.lm_head,
            kernels=machine.kernel_name(engine.decoder.device),
            window=windows.targets.shape[1],
            stride=windows.stride,
            windows=len(windows.targets),
            predictions=predictions,
            bytes_per_token=n_bytes / predictions,
            tokens_per_step=self.rows,
            loss=loss,
            perplexity=math.exp(loss),
            bits_per_byte=float(self.loss.sum()) / math.log(2) / n_bytes if n_bytes else None,
            activation_sparsity=activation_sparsity(self.session, engine.config.neurons_per_token),
            baseline_loss=baseline_loss,
            baseline_perplexity=math.exp(baseline_loss),
            perplexity_ratio=exponential(bootstrap(self.loss - self.baseline_loss)),
            kl_divergence=bootstrap(self.kl),
            top1_agreement=bootstrap(self.agrees),
        )


def exponential(interval: Interval) -> Interval:
    """The interval of a ratio from that of its logarithm."""
    low, high = (None if bound is None else math.exp(bound) for bound in (interval.low, interval.high))
    return Interval(math.exp(interval.value), low, high)


def _check_finite(ours: Tensor, theirs: Tensor) -> None:
    for what, logits in (("the engine under test", ours), ("the dense fp32 baseline", theirs)):
        if not bool(logits.isfinite().all()):
            raise MachineError(
                f"perplexity: logits of {what} are not finite; load the model with --weights bf16 or fp32, or fetch "
                "the checkpoint anew"
            )
