"""Small random folders of OPT, Falcon and MiniCPM-MoE, from the keys of their config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_tokenizer import write_tokenizer
from torch import Tensor


class Maker:
    """Random tensors of a trained network's scale under the names they are asked by."""

    def __init__(self, seed: int) -> None:
        self.rng, self.tensors = torch.Generator().manual_seed(seed), dict[str, Tensor]()

    def matrix(self, name: str, rows: int, columns: int, bias: bool = False) -> None:
        self.tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=self.rng) / columns**0.5
        if bias:
            self.tensors[f"{name}.bias"] = 0.5 * torch.randn(rows, generator=self.rng)

    def norm(self, name: str, size: int, bias: bool = True) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=self.rng)
        if bias:
            self.tensors[f"{name}.bias"] = 0.1 * torch.randn(size, generator=self.rng)


def write_opt(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """What OPTForCausalLM saves."""
    hidden, neurons, bias = config["hidden_size"], config["ffn_dim"], config.get("enable_bias", True)
    width, maker = config.get("word_embed_proj_dim", hidden), Maker(seed)
    maker.matrix("model.decoder.embed_tokens", config["vocab_size"], width)
    maker.matrix("model.decoder.embed_positions", config["max_position_embeddings"] + 2, hidden)
    if width != hidden:
        maker.matrix("model.decoder.project_in", hidden, width)
        maker.matrix("model.decoder.project_out", width, hidden)
    if config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False):
        maker.norm("model.decoder.final_layer_norm", hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.decoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            maker.matrix(f"{layer}.self_attn.{name}", hidden, hidden, bias)
        maker.norm(f"{layer}.self_attn_layer_norm", hidden)
        maker.matrix(f"{layer}.fc1", neurons, hidden, bias)
        maker.matrix(f"{layer}.fc2", hidden, neurons, bias)
        maker.norm(f"{layer}.final_layer_norm", hidden)
    return finish(folder, config, maker.tensors)


def write_falcon(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """What FalconForCausalLM saves."""
    hidden, heads, bias = config["hidden_size"], config["num_attention_heads"], config.get("bias", False)
    neurons, new = config.get("ffn_hidden_size", 4 * hidden), config.get("new_decoder_architecture", False)
    kv_heads = config.get("num_kv_heads", heads) if new else 1 if config.get("multi_query", True) else heads
    maker = Maker(seed)
    maker.matrix("transformer.word_embeddings", config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"transformer.h.{i}"
        rows = hidden // heads * (heads + 2 * kv_heads)
        maker.matrix(f"{layer}.self_attention.query_key_value", rows, hidden, bias)
        maker.matrix(f"{layer}.self_attention.dense", hidden, hidden, bias)
        maker.matrix(f"{layer}.mlp.dense_h_to_4h", neurons, hidden, bias)
        maker.matrix(f"{layer}.mlp.dense_4h_to_h", hidden, neurons, bias)
        two = new and config.get("num_ln_in_parallel_attn", 2) == 2
        for name in ("ln_attn", "ln_mlp") if two else ("input_layernorm",):
            maker.norm(f"{layer}.{name}", hidden)
    maker.norm("transformer.ln_f", hidden)
    if not config.get("tie_word_embeddings", True):
        maker.matrix("lm_head", config["vocab_size"], hidden)
    return finish(folder, config, maker.tensors)


def write_experts(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """What MiniCPM-MoE's own class saves."""
    hidden, heads, neurons = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    kv, maker = hidden // heads * config["num_key_value_heads"], Maker(seed)
    maker.matrix("model.embed_tokens", config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            maker.matrix(f"{layer}.self_attn.{name}", rows, hidden)
        maker.matrix(f"{layer}.mlp.gate", config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            maker.matrix(f"{layer}.mlp.experts.{expert}.w1", neurons, hidden)
            maker.matrix(f"{layer}.mlp.experts.{expert}.w2", hidden, neurons)
            maker.matrix(f"{layer}.mlp.experts.{expert}.w3", neurons, hidden)
        maker.norm(f"{layer}.input_layernorm", hidden, bias=False)
        maker.norm(f"{layer}.post_attention_layernorm", hidden, bias=False)
    maker.norm("model.norm", hidden, bias=False)
    return finish(folder, config, maker.tensors)


def finish(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return write_tokenizer(folder)
