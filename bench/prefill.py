"""Subject "prefill": reading a prompt, against PyTorch's bf16 GEMMs over the same shapes in the same run.

A prompt is computed dense in every mode. What those GEMMs take is the time of an engine whose attention, norms,
activations and conversions cost nothing; for packed weights they show what unpacking costs beside bf16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from prosparse.config import ModelConfig
from prosparse.config.shapes import shape as shape_named
from prosparse.engine.load import assemble
from prosparse.engine.session import Session
from prosparse.errors import UserError
from prosparse.model.decoder import Decoder
from prosparse.placement import choose
from prosparse.weights.synthetic import MatrixMaker, synthetic_weights, walk, weight_bytes

from .check import require_close
from .clock import interleave
from .probe import BUFFER_BYTES, Probe
from .progress import Progress, stage
from .row import Row, floor, make_row, measured

SPARSITY = 0.88  # of the weights; a prefill does the same work whatever it is
GEMMS = "PyTorch's bf16 GEMMs of the same shapes in the same run"
ROUNDING = {"fp32": 1e-4, "fp16": 0.02}  # of hidden states, prefilled against decoded; the others are bf16 GEMMs
BF16_ROUNDING = 0.15
CHECKED = 24  # tokens: more than a decode step takes, so that they are prefilled


def compare_prefill(
    shape: str = "minicpm-s-1b",
    prompts: Sequence[int] = (64, 512),
    weights: str = "bf16",
    layers: int | None = None,
    rounds: int = 12,
    progress: Progress | None = None,
) -> list[Row]:
    """Time prompts on synthetic weights of a real shape.

    Args:
        shape: a name of `prosparse.config.shapes`.
        prompts: their lengths, tokens; at most the shape's context.
        weights: format of ours; the GEMMs are bf16.
        layers: run only so many of the shape's, which the rows' notes say; None for all.
        rounds: timed prompts of each.
        progress: called with (stage, done, total).

    Returns:
        Two rows per prompt length: mode "dense", and "pytorch", the GEMMs.

    Raises:
        UserError: no such shape or format, or a prompt that does not fit.
        MachineError: not enough memory, or prefill and decode disagree.
    """
    full = shape_named(shape)
    if bad := [tokens for tokens in prompts if not 2 <= tokens <= full.max_position]:
        raise UserError(f"bench: a prompt must be from 2 to {full.max_position} tokens long, got {bad[0]}")
    config = full if layers is None else dataclasses.replace(full, layers=min(layers, full.layers))
    tensors, _ = synthetic_weights(config, weights, SPARSITY, progress=stage(progress, "making weights"))
    decoder, probe = assemble(config, tensors, choose(config, "dense"), max(CHECKED, *prompts)), Probe()
    _check(decoder, walk(config.vocab, CHECKED))
    note = f"{config.layers} of {full.layers} layers" if config.layers < full.layers else None
    rows = []
    for tokens in prompts:
        session = Session(decoder, torch.float32 if weights == "fp32" else torch.bfloat16, 1, tokens)
        prompt = walk(config.vocab, tokens)
        calls: dict[str, Callable[[int], object]] = {"dense": partial(_read, session, prompt)}
        calls["pytorch"] = gemms(config, tokens)
        update = stage(progress, "timing")
        timings = interleave({**calls, "probe": probe}, rounds, warm_up=1, progress=update)
        for mode, fmt in (("dense", weights), ("pytorch", "bf16")):
            read = layer_bytes(config, fmt)
            rows.append(
                make_row(
                    subject="prefill",
                    part=f"pp{tokens}",
                    shape=shape,
                    layers=config.layers,
                    mode=mode,
                    weights=fmt,
                    context=tokens,
                    tokens_per_s=round(1e6 * tokens / timings[mode].median, 2) if note is None else None,
                    repeat=1,
                    note=note,
                    **measured(timings, mode, "pytorch", GEMMS),
                    **floor(read, read, probe=timings["probe"], timing=timings[mode]),
                )
            )
    return rows


def _read(session: Session, prompt: Tensor, _: int) -> None:
    for _hidden in session.prefill(prompt):
        pass


def layer_bytes(config: ModelConfig, fmt: str) -> int:
    """Of the matrices of all layers: embeddings are looked up, and lm_head is not asked."""
    one, two = (weight_bytes(dataclasses.replace(config, layers=layers), fmt) for layers in (1, 2))
    return config.layers * (two - one)


def gemms(config: ModelConfig, tokens: int) -> Callable[[int], Tensor]:
    """All products of a prompt with the matrices of the layers, in bf16, over as many copies as no cache holds."""
    maker, hidden, attended = MatrixMaker("bf16"), config.hidden, config.heads * config.head_dim
    qkv = attended + 2 * config.kv_heads * config.head_dim
    firsts = 2 if config.gated else 1  # gate and up, or the gate alone
    per_layer = 2 * (qkv * hidden + hidden * attended + (firsts + 1) * config.neurons * hidden)
    copies = min(config.layers, -(-BUFFER_BYTES // per_layer))
    maker.expect(copies * per_layer)
    sizes = [(qkv, hidden), (hidden, attended)] + [(config.neurons, hidden)] * (firsts + 1)
    matrices = [[maker.matrix(*size, hidden**-0.5).codes for size in sizes] for _ in range(copies)]
    x, heads, h = (torch.randn(tokens, width).bfloat16() for width in (hidden, attended, config.neurons))

    def call(_: int) -> Tensor:
        for layer in range(config.layers):
            project, o, *first, down = matrices[layer % copies]
            linear(x, project), linear(heads, o)
            for matrix in first:
                linear(x, matrix)
            last = h @ down
        return last

    return torch.inference_mode()(call)


@torch.inference_mode()
def _check(decoder: Decoder, tokens: Tensor) -> None:
    """A prompt read at once must leave the hidden state that reading it token by token leaves."""
    fmt = decoder.blocks[0][0].qkv.format
    kv_dtype = torch.float32 if fmt == "fp32" else torch.bfloat16
    at_once = torch.cat(list(Session(decoder, kv_dtype, 1, tokens.numel()).prefill(tokens)))
    session = Session(decoder, kv_dtype, 1, tokens.numel())
    logits = [session.decode(token.view(1, 1), (0,), (at,)) for at, token in enumerate(tokens)]
    expected, terms = torch.cat(logits), decoder.config.hidden + decoder.config.neurons
    require_close("prefill", decoder.logits(at_once[-16:]), expected[-16:], terms, ROUNDING.get(fmt, BF16_ROUNDING))
