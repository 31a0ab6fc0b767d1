"""The weights of a model in memory, in the form that kernels read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prosparse.kernels.weight import Weight


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer.

    Args:
        attention_norm, ffn_norm: RMSNorm weights, [hidden] float32.
        qkv: rows of q, then k, then v, [(heads + 2 kv_heads) * head_dim, hidden].
        qkv_bias: [(heads + 2 kv_heads) * head_dim] float32, or None.
        o: [hidden, heads * head_dim].
        gate, up, down: [neurons, hidden] each; down is Hugging Face's down_proj transposed.
    """

    attention_norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    o: Weight
    ffn_norm: Tensor
    gate: Weight
    up: Weight
    down: Weight


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of a model, on one device.

    Args:
        embed: token embeddings, [vocab, hidden].
        lm_head: [vocab, hidden]; the same object as `embed` when tied.
        final_norm: RMSNorm weight, [hidden] float32.
        layers: in order.
    """

    embed: Weight
    lm_head: Weight
    final_norm: Tensor
    layers: list[LayerWeights]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices, a tied one counted once; norms and biases do not matter beside them."""
        matrices = [self.embed] if self.lm_head is self.embed else [self.embed, self.lm_head]
        for layer in self.layers:
            matrices += [layer.qkv, layer.o, layer.gate, layer.up, layer.down]
        return sum(matrix.nbytes for matrix in matrices)
