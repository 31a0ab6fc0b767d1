"""OPT and Falcon in float64, from the published formulas and from none of our code.

opt      h = embed + positions[2 + t];  h += attention(norm h);  h += fc2(relu(fc1 norm h))
         350M: embed and logits through a projection, and norm(h + ...) after each part instead of before it
falcon   h += attention(norm h) + down(relu(up norm' h)), both of the same h;  7B: norm' is norm
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from float64_forward import attend, read_folder, rotate
from torch import Tensor


class Tensors:
    """The tensors of a model by their names without the beginning that they share."""

    def __init__(self, tensors: dict[str, Tensor], start: str) -> None:
        self.tensors, self.start = tensors, start

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"{self.start}.{name}"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].T + self.bias(name)

    def bias(self, name: str) -> Tensor | float:
        return self.tensors.get(f"{self.start}.{name}.bias", 0.0)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * self[f"{name}.weight"] + self.bias(
            name
        )


def forward_plain(folder: Path, token_ids: list[int]) -> Tensor:
    """Logits of every position, [tokens, vocab]."""
    config = json.loads((folder / "config.json").read_text())
    tensors = read_folder(folder)[1]
    forward = {"opt": opt, "falcon": falcon}[config["model_type"]]
    return forward(config, tensors, token_ids)


def opt(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    of, tokens, heads = Tensors(tensors, "model.decoder"), len(ids), config["num_attention_heads"]
    before = config.get("do_layer_norm_before", True)
    h = of["embed_tokens.weight"][ids]
    if "model.decoder.project_in.weight" in tensors:
        h = of.linear("project_in", h)
    h = h + of["embed_positions.weight"][2 : 2 + tokens]
    for i in range(config["num_hidden_layers"]):
        own = Tensors(tensors, f"model.decoder.layers.{i}")
        x = own.norm("self_attn_layer_norm", h, 1e-5) if before else h
        q, k, v = (own.linear(f"self_attn.{name}_proj", x).view(tokens, heads, -1) for name in "qkv")
        h = h + own.linear("self_attn.out_proj", attend(q, k, v, tokens))
        h = h if before else own.norm("self_attn_layer_norm", h, 1e-5)
        x = own.norm("final_layer_norm", h, 1e-5) if before else h
        h = h + own.linear("fc2", own.linear("fc1", x).clamp_min(0))
        h = h if before else own.norm("final_layer_norm", h, 1e-5)
    if "model.decoder.final_layer_norm.weight" in tensors:
        h = of.norm("final_layer_norm", h, 1e-5)
    if "model.decoder.project_out.weight" in tensors:
        h = of.linear("project_out", h)
    return h @ of["embed_tokens.weight"].T


def falcon(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    of, tokens, heads = Tensors(tensors, "transformer"), len(ids), config["num_attention_heads"]
    head_dim, eps = config["hidden_size"] // heads, config["layer_norm_epsilon"]
    h = of["word_embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        own = Tensors(tensors, f"transformer.h.{i}")
        two = f"transformer.h.{i}.ln_mlp.weight" in tensors
        x = own.norm("ln_attn" if two else "input_layernorm", h, eps)
        fused = own.linear("self_attention.query_key_value", x)
        if config.get("new_decoder_architecture", False) or not config.get("multi_query", True):
            kv_heads = config.get("num_kv_heads", heads) if config.get("new_decoder_architecture") else heads
            parts = fused.view(tokens, kv_heads, -1, head_dim)  # of each key head: its queries, its key, its value
            q, k, v = parts[:, :, :-2].reshape(tokens, heads, head_dim), parts[:, :, -2], parts[:, :, -1]
        else:
            q, k, v = fused.view(tokens, heads + 2, head_dim).split([heads, 1, 1], 1)
        theta = config.get("rope_theta", 10000.0)
        attended = own.linear("self_attention.dense", attend(rotate(q, theta), rotate(k, theta), v, tokens))
        x = own.norm("ln_mlp", h, eps) if two else x
        h = h + attended + own.linear("mlp.dense_4h_to_h", own.linear("mlp.dense_h_to_4h", x).clamp_min(0))
    h = of.norm("ln_f", h, eps)
    return h @ tensors.get("lm_head.weight", of["word_embeddings.weight"]).T
