"""The weights of a model in memory, in the form that kernels read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prosparse.kernels.weight import Weight


@dataclass(frozen=True, eq=False)
class ColdWeights:
    """What one of two devices holds of a layer's FFN: the last neurons in hot-first order.

    Args:
        gate, up, down: [neurons of each, hidden].
    """

    gate: Weight
    up: Weight
    down: Weight


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer. Biases and norms are float32, and None where the model has none.

    Args:
        attention_norm, ffn_norm: weights of the norms, [hidden].
        qkv: rows of q, then k, then v, [(heads + 2 kv_heads) * head_dim, hidden].
        qkv_bias: [(heads + 2 kv_heads) * head_dim].
        o: [hidden, heads * head_dim].
        gate, up, down: [neurons, hidden] each, of all experts one below the other; down is Hugging Face's down_proj
            transposed, and up is None in a model whose FFNs have none.
        attention_norm_bias, ffn_norm_bias, o_bias, down_bias: [hidden].
        gate_bias: [neurons].
        router: [experts, hidden] float32.
        cold: rows of gate, up and down on another device; the three above are then the others, hot-first.
    """

    attention_norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    o: Weight
    ffn_norm: Tensor
    gate: Weight
    up: Weight | None
    down: Weight
    attention_norm_bias: Tensor | None = None
    o_bias: Tensor | None = None
    ffn_norm_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None
    router: Tensor | None = None
    cold: ColdWeights | None = None


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of a model, on one device or divided between two.

    Args:
        embed: token embeddings, [vocab, embed_width].
        lm_head: [vocab, embed_width]; the same object as `embed` when tied.
        final_norm, final_norm_bias: weight and bias, [hidden] float32; None where there is none.
        layers: in order.
        positions: learned position embeddings, [max_position + position_offset, hidden] float32.
        project_in, project_out: between embedding and hidden, [hidden, embed_width] and [embed_width, hidden].
    """

    embed: Weight
    lm_head: Weight
    final_norm: Tensor | None
    layers: list[LayerWeights]
    final_norm_bias: Tensor | None = None
    positions: Tensor | None = None
    project_in: Weight | None = None
    project_out: Weight | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices, a tied one counted once; norms and biases do not matter beside them."""
        matrices = [self.embed, self.project_in, self.project_out]
        if self.lm_head is not self.embed:
            matrices.append(self.lm_head)
        for layer in self.layers:
            matrices += [layer.qkv, layer.o, layer.gate, layer.up, layer.down]
            if layer.cold is not None:
                matrices += [layer.cold.gate, layer.cold.up, layer.cold.down]
        return sum(matrix.nbytes for matrix in matrices if matrix is not None)
