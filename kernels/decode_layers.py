"""All layers of one decode step: for each, attention over the cache and the gated FFN, both with their norm and add.

    x = rms_norm(residual)      residual += scale * o(attend(rotary_store(qkv(x) + bias)))
    x = rms_norm(residual)      residual += scale * ffn(x)        ffn: glu_dense, glu_exact or glu_predicted, by layer

It is what `linear`, `rotary_store`, `attend`, `glu_exact` and `glu_dense` compute one after the other, and on the CPU
bit for bit. One op, because a step is 5 ops a layer: calling each from Python costs 10 to 20 us, a millisecond or more
of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .activation import Activation
from .active import compact
from .attend import attend_reference
from .checks import MAX_ROWS
from .glu_dense import glu_dense_reference
from .glu_exact import check_glu, glu_exact_reference
from .glu_predicted import glu_predicted_reference
from .guess import Guess, guess_from
from .library import register
from .linear import linear_reference
from .predict_select import named
from .rms_norm import rms_norm_reference
from .rotary_store import rotary_store_reference
from .weight import Weight

PER_LAYER = 7  # tensors in `weights` for a layer


@dataclass(frozen=True, eq=False)
class Glu:
    """The gated FFN of one layer.

    Args:
        norm: [hidden] float32.
        gate, up, down: [neurons, hidden] each, one format; down has one neuron per row.
        activation: the same in every layer.
        dense: whether a step reads every weight, or only those of active neurons.
        guess: what names the neurons to look at; None looks at all.
    """

    norm: Tensor
    gate: Weight
    up: Weight
    down: Weight
    activation: Activation
    dense: bool
    guess: Guess | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer.

    Args:
        norm: of the attention, [hidden] float32.
        qkv: [(heads + 2 * kv_heads) * head_dim, hidden].
        qkv_bias: [(heads + 2 * kv_heads) * head_dim] float32, or None in every layer.
        o: [hidden, heads * head_dim].
        ffn: what follows the attention.
    """

    norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    o: Weight
    ffn: Glu


class DecodeLayers:
    """The layers of a model, ready to be called for every step.

    Args:
        layers: in order.
        eps: of every norm.
        scale: of every add.
        window: how many latest positions a token sees; None for all.

    Raises:
        ValueError: a bias or an activation in some layers only, or weights of one layer that disagree.
    """

    def __init__(self, layers: Sequence[Layer], eps: float, scale: float, window: int | None) -> None:
        self.weights, self.biases = [], [layer.qkv_bias for layer in layers if layer.qkv_bias is not None]
        self.guess_tensors: list[Tensor] = []
        self.guesses: list[int] = []
        if self.biases and len(self.biases) != len(layers):
            raise ValueError(f"decode_layers: {len(self.biases)} of {len(layers)} layers have a bias; all or none must")
        for layer in layers:
            ffn = layer.ffn
            check_glu("decode_layers", ffn.norm[None], ffn.gate, ffn.up, ffn.down)
            self.weights += [layer.norm, layer.qkv.codes, layer.o.codes]
            if ffn.guess is not None:
                ffn.guess.check_fits("decode_layers", *ffn.gate.shape)
                self.guess_tensors += ffn.guess.tensors
            self.guesses.append(0 if ffn.guess is None else ffn.guess.code)
            self.weights += [ffn.norm, ffn.gate.codes, ffn.up.codes, ffn.down.codes]
        self.dense = [int(layer.ffn.dense) for layer in layers]
        if len(activations := {layer.ffn.activation for layer in layers}) != 1:
            raise ValueError(f"decode_layers: all layers must share an activation, got {activations}")
        self.activation, self.eps, self.scale, self.window = activations.pop(), eps, scale, window or 0

    def __call__(
        self,
        residual: Tensor,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Sequence[int],
        starts: Sequence[int],
        tally: Tensor,
    ) -> Tensor:
        """One step.

        Args:
            residual: [tokens, hidden] float32, contiguous; the tokens of a sequence adjacent, equally many of each.
            keys, values: the cache, [layers, slots, kv_heads, context, head_dim]; the new tokens' are written.
            cos, sin: angles of the new tokens, [tokens, head_dim / 2] float32.
            slots, starts: of each sequence, its place in the cache and how many tokens it has there.
            tally: [layers, 4] int64, see `kernels.tally`; what each FFN did is added.

        Returns:
            The residual after the last layer, [tokens, hidden] float32.

        Raises:
            ValueError: the number of tokens is none of a decode step.
            RuntimeError: sizes disagree, or a position is outside the cache.
        """
        if not 1 <= residual.shape[0] <= MAX_ROWS:
            raise ValueError(
                f"decode_layers: a decode step takes at most {MAX_ROWS} tokens, got {residual.shape[0]}; prefill them"
            )
        activation = self.activation
        return torch.ops.prosparse.decode_layers(
            residual, self.weights, self.biases, self.guess_tensors, self.guesses, self.dense, keys, values, cos, sin,
            slots, starts, self.window, self.eps, self.scale, activation.code, activation.threshold, activation.on_up,
            tally,
        )  # fmt: skip


def decode_layers_reference(
    residual: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    guess_tensors: list[Tensor],
    guesses: list[int],
    dense: list[int],
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: list[int],
    starts: list[int],
    window: int,
    eps: float,
    scale: float,
    kind: int,
    threshold: float,
    on_up: bool,
    tally: Tensor,
) -> Tensor:
    """The meaning of the op: the references of its parts."""
    rows = residual.shape[0] // len(slots)
    used = 0  # of the tensors of the guesses
    for layer, is_dense in enumerate(dense):
        own = weights[layer * PER_LAYER : (layer + 1) * PER_LAYER]
        attention_norm, qkv, o, ffn_norm, gate, up, down = own
        x = linear_reference(rms_norm_reference(residual, attention_norm, eps), qkv)
        if biases:
            x = x + biases[layer]
        attended = []
        for i, (slot, start) in enumerate(zip(slots, starts, strict=True)):
            new = slice(i * rows, (i + 1) * rows)
            k, v = keys[layer, slot, :, : start + rows], values[layer, slot, :, : start + rows]
            q = rotary_store_reference(x[new], cos[new], sin[new], k, v, start)
            attended.append(attend_reference(q, k, v, start, window))
        residual = torch.add(residual, linear_reference(torch.cat(attended), o), alpha=scale)
        x = rms_norm_reference(residual, ffn_norm, eps)
        if code := guesses[layer]:
            guess = guess_from(code, guess_tensors[used:], x.shape[1])
            used += len(guess.tensors)
            listed = compact(named(guess.scores(residual, x)).any(dim=0))
            y = glu_predicted_reference(x, gate, up, down, *listed, kind, threshold, on_up, tally[layer])
        else:
            glu = glu_dense_reference if is_dense else glu_exact_reference
            y = glu(x, gate, up, down, kind, threshold, on_up, tally[layer])
        residual = torch.add(residual, y, alpha=scale)
    return residual


def _fake(residual: Tensor, *arguments: object) -> Tensor:
    return torch.empty_like(residual)


register(
    "decode_layers(Tensor residual, Tensor[] weights, Tensor[] biases, Tensor[] guess_tensors, int[] guesses, "
    "int[] dense, Tensor(a!) keys, Tensor(b!) values, Tensor cos, Tensor sin, int[] slots, int[] starts, "
    "int window, float eps, float scale, int kind, float threshold, bool on_up, Tensor(c!) tally) -> Tensor",
    decode_layers_reference,
    _fake,
)
