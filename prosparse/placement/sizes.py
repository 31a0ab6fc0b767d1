"""Bytes of every part of a model, and of what runs beside it: what a budget has to hold."""

from __future__ import annotations

from dataclasses import dataclass

from prosparse.kernels.predict_select import words
from prosparse.kernels.weight import FORMATS, bytes_per_row

from ..config import ModelConfig
from ..errors import UnsupportedError, UserError
from ..sparsity.double_buffer import BUFFER_BYTES
from ..weights.predictor import LayerPredictor, Predictor

PREFILL_TOKENS = 512  # of a chunk of a prompt
GEMM_BYTES = 32 << 20  # what a GEMM library keeps
GRAPH_BYTES = 256 << 10  # of a layer's part of a captured step
ASSUMED_RANK = 256  # of the int8 predictor that stands for one that is not made yet


@dataclass(frozen=True)
class Host:
    """Who runs a model, as far as its bytes depend on it.

    Args:
        vector_bytes: of a number of a norm or bias.
        prompt: tokens of a prompt that are at work at once outside the FFNs; None is the whole context.
    """

    vector_bytes: int
    prompt: int | None


ENGINE = Host(4, PREFILL_TOKENS)


@dataclass(frozen=True)
class Sizes:
    """Bytes.

    Args:
        attention: projections, biases and norms of a layer.
        cache: keys and values of a layer, for one sequence as long as the context.
        row: of gate, up or down each, one neuron.
        predictor: per layer; 0 where a layer has none.
        head: lm_head and the final norm.
        embedding: the table of tokens, which stays on the CPU.
        fixed: on the GPU beside all that: workspace of a prompt, buffers, graph.
    """

    attention: int
    cache: int
    row: int
    predictor: tuple[int, ...]
    head: int
    embedding: int
    fixed: int


def check_can_be_split(config: ModelConfig) -> None:
    """Raise UnsupportedError for a model whose FFNs have no gate and up rows to cut."""
    if not config.gated or config.experts:
        kind = "several FFNs a layer" if config.experts else "FFNs without up projection"
        raise UnsupportedError(f"plan: {config.family} models with {kind} are not split; use --device cpu or cuda")


def sizes_of(
    config: ModelConfig,
    weights: str,
    lm_head: str,
    context: int,
    mode: str,
    predictor: Predictor | None = None,
    host: Host = ENGINE,
) -> Sizes:
    """The sizes of a model.

    Args:
        config: with gated FFNs, one a layer.
        weights, lm_head: formats.
        context: tokens of the cache.
        mode: one of `plan.MODES`; without a predictor, predicted takes one of rank `ASSUMED_RANK` in int8.
        predictor: of the model.
        host: who runs it.

    Raises:
        UserError: a format or context that is none.
        UnsupportedError: another kind of FFN.
    """
    check_can_be_split(config)
    for name, fmt in (("weights", weights), ("lm_head", lm_head)):
        if fmt not in FORMATS:
            raise UserError(f"plan: {name} is {fmt!r}; supported are {', '.join(FORMATS)}")
    hidden, attended, head_dim = config.hidden, config.heads * config.head_dim, config.head_dim
    qkv = attended + 2 * config.kv_heads * head_dim
    biases = config.attention_bias * qkv + config.output_bias * hidden
    attention = qkv * bytes_per_row(weights, hidden) + hidden * bytes_per_row(weights, attended)
    kv_bytes = 4 if weights == "fp32" else 2
    width = config.embed_width or hidden
    table = config.vocab * bytes_per_row(lm_head, width)
    guesses = [None] * config.layers if predictor is None else predictor.layers
    predicted = mode == "predicted"
    return Sizes(
        attention=attention + host.vector_bytes * (biases + 2 * hidden),
        cache=2 * config.kv_heads * context * head_dim * kv_bytes,
        row=bytes_per_row(weights, hidden),
        predictor=tuple(
            0 if not predicted else _assumed(config) if predictor is None else _guess_bytes(config, own)
            for own in guesses
        ),
        head=table + host.vector_bytes * hidden,
        embedding=table if config.tied_embeddings else config.vocab * bytes_per_row(weights, width),
        fixed=_workspace(config, weights, context, qkv, host.prompt or context) + config.layers * GRAPH_BYTES,
    )


def _workspace(config: ModelConfig, weights: str, context: int, qkv: int, prompt: int) -> int:
    """Of a prompt: fp32 activations, FFNs' of a chunk; attention's mask, a packed matrix as bf16; a step's logits."""
    prompt = max(prompt, PREFILL_TOKENS)
    activations = (prompt * (4 * config.hidden + qkv) + PREFILL_TOKENS * 3 * config.neurons) * 4
    mask = prompt * context * 4
    written_out = config.neurons * config.hidden * 2 if weights in ("int8", "int4") else 0
    return activations + mask + written_out + 2 * BUFFER_BYTES + GEMM_BYTES + 2 * 4 * config.vocab


def _assumed(config: ModelConfig) -> int:
    first = ASSUMED_RANK * bytes_per_row("int8", config.hidden)
    return first + config.neurons * (bytes_per_row("int8", ASSUMED_RANK) + 4)


def _guess_bytes(config: ModelConfig, own: LayerPredictor | None) -> int:
    """What a layer's predictor takes once `sparsity.Selector` has made of it what a step scans."""
    if own is None:
        return 0
    if own.first is not None and own.second is not None:
        scanned = own.first.nbytes + own.second.nbytes
    elif own.kind == "low_bit_gate":
        scanned = config.neurons * bytes_per_row("int4", config.hidden)
    else:
        scanned = config.neurons * words(config.hidden) * 8
    return scanned + 4 * config.neurons
