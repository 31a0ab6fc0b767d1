"""How a run starts: from random weights, or from a folder's, with its idle neurons made useful again."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .model import Network, Shape


def read_shape(folder: Path) -> Shape:
    """The sizes that a folder's config.json names."""
    config = json.loads((folder / "config.json").read_text())
    return Shape(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        neurons=config["intermediate_size"],
        context=config["max_position_embeddings"],
    )


def load_folder(network: Network, folder: Path) -> None:
    """Take the weights of a folder that this tool, or one with its names, has written."""
    tensors = {name: t for path in sorted(folder.glob("model*.safetensors")) for name, t in load_file(path).items()}
    if not tensors:
        raise SystemExit(f"--init: {folder} holds no model*.safetensors file")
    network.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})


def revive(network: Network, counts: Tensor, predictions: int, below: float, generator: torch.Generator) -> list[int]:
    """Give neurons that are almost never active new gate and up rows, and a down column of zero.

    The network computes nearly the same as before, and all its neurons learn again: a ReLU neuron that is never active
    gets no gradient by itself.

    Args:
        counts: how often each neuron was active over `predictions` tokens, [layers, neurons].
        below: share of tokens under which a neuron is revived.

    Returns:
        How many neurons of each layer were revived.
    """
    idle = counts < below * predictions
    with torch.no_grad():
        for layer, rows in zip(network.layers, idle, strict=True):
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                fresh = torch.randn(projection.weight.shape, generator=generator) * 0.02
                projection.weight[rows] = fresh[rows].to(projection.weight)
            layer.mlp.down_proj.weight[:, rows] = 0.0
    return idle.sum(1).tolist()
