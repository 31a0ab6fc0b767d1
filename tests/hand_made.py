"""Models whose activations are known by construction: a table says which neuron a token opens, in which way.

Embeddings are one-hot, attention and down add nothing, so every layer sees the token and nothing else.

    #   open, with a value well above zero
    +   open, with a value of 0.004
    o   the gate is open, but up is zero
    .   closed
"""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_model import write_tiny, write_weights
from tiny_tokenizer import VOCAB, write_tokenizer
from torch import Tensor

HIDDEN = 16  # token k is the k-th unit vector, 4 long after its norm; later tokens are zero and open nothing
GATE = {"#": 1.0, "+": 0.001, "o": 1.0, ".": -1.0}
UP = {"#": 1.0, "+": 1.0, "o": 0.0, ".": 1.0}

# Three neurons at tokens 0 to 3 of layer 0, six tokens in all; and a second layer.
LAYERS = (
    [
        # token 0    1    2    3
        ["#", "#", "#", "#"],  # neuron 0: always on
        ["#", "#", ".", "."],
        [".", "+", ".", "o"],
        [".", ".", ".", "."],  # neuron 3: dead
    ],
    [
        [".", "#", ".", "."],
        [".", "#", ".", "."],
        [".", "#", ".", "."],
        [".", ".", ".", "#"],
    ],
)


def write_hand_made(folder: Path, layers: tuple[list[list[str]], ...] = LAYERS) -> Path:
    """A Llama folder in fp32 with a layer per table, [neurons][tokens]."""
    neurons = len(layers[0])
    sizes = {"hidden": HIDDEN, "vocab": VOCAB, "heads": 2, "kv_heads": 1, "head_dim": 8, "max_position": 64}
    write_tiny(folder, neurons=neurons, layers=len(layers), dtype=torch.float32, **sizes)
    one = torch.ones(HIDDEN)
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": torch.eye(VOCAB, HIDDEN),
        "model.norm.weight": one,
        "lm_head.weight": torch.eye(VOCAB, HIDDEN),
    }
    for number, table in enumerate(layers):
        name = f"model.layers.{number}"
        gate, up = torch.full((neurons, HIDDEN), -1.0), torch.zeros(neurons, HIDDEN)
        for neuron, row in enumerate(table):
            for token, mark in enumerate(row):
                gate[neuron, token], up[neuron, token] = GATE[mark], UP[mark]
        tensors |= {
            f"{name}.self_attn.q_proj.weight": torch.zeros(16, HIDDEN),
            f"{name}.self_attn.k_proj.weight": torch.zeros(8, HIDDEN),
            f"{name}.self_attn.v_proj.weight": torch.zeros(8, HIDDEN),
            f"{name}.self_attn.o_proj.weight": torch.zeros(HIDDEN, 16),
            f"{name}.mlp.gate_proj.weight": gate,
            f"{name}.mlp.up_proj.weight": up,
            f"{name}.mlp.down_proj.weight": torch.zeros(HIDDEN, neurons),
            f"{name}.input_layernorm.weight": one,
            f"{name}.post_attention_layernorm.weight": one,
        }
    write_weights(folder, {key: tensor.clone() for key, tensor in tensors.items()})
    return write_tokenizer(folder)


def random_tables(layers: int, neurons: int, seed: int = 0) -> tuple[list[list[str]], ...]:
    """Tables of all tokens in which neurons differ in how often they are open."""
    rng = torch.Generator().manual_seed(seed)
    rate = torch.rand(layers, neurons, 1, generator=rng) ** 2
    mark = torch.rand(layers, neurons, HIDDEN, generator=rng)
    kind = torch.randint(0, 3, mark.shape, generator=rng)
    shown = torch.where(mark < rate, kind, 3)
    return tuple([["#+o."[int(i)] for i in row] for row in table] for table in shown)
