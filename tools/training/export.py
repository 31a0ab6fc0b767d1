"""From a trained network to a folder: the threshold sweep, and Hugging Face's files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from make_excerpts import END
from tokenizers import Tokenizer
from torch import Tensor

from prosparse.weights.writer import Entry, split_shards, write_safetensors

from .model import EPS, ROPE_THETA, Network, Shape
from .text import PAD

THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
SHARD_BYTES = 15 * 2**20


@torch.inference_mode()
def evaluate(network: Network, windows: Tensor, batch: int) -> tuple[float, Tensor]:
    """Loss in nats per token, and counts of active neurons, [layers, neurons], in the arithmetic that is in force."""
    loss, counts = 0.0, torch.zeros(network.shape.layers, network.shape.neurons)
    device = network.norm.weight.device
    for part in windows.split(batch):
        result = network(part.to(device), with_counts=True)
        loss += float(result["loss"]) * len(part) / len(windows)
        counts += result["counts"].cpu()
    return loss, counts


def round_to_bf16(network: Network) -> None:
    """Give the weights the values that the exported files hold."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())


def sweep(network: Network, windows: Tensor, batch: int) -> list[tuple[float, float, list[float]]]:
    """For each of `THRESHOLDS`: it, the loss in fp32, and the activation sparsity of each layer."""
    rows = []
    for threshold in THRESHOLDS:
        network.set_threshold(threshold)
        loss, counts = evaluate(network, windows, batch)
        sparsity = (1 - counts.mean(1) / windows[:, 1:].numel()).tolist()
        rows.append((threshold, round(loss, 5), [round(share, 4) for share in sparsity]))
    network.set_threshold(0.0)
    return rows


def choose(rows: list[tuple[float, float, list[float]]], tolerance: float, at_most: float) -> float:
    """The largest threshold that costs at most `tolerance` nats and leaves the mean sparsity at most `at_most`."""
    fitting = [
        threshold
        for threshold, loss, layers in rows
        if loss <= rows[0][1] + tolerance and sum(layers) / len(layers) <= at_most
    ]
    return max(fitting, default=0.0)


def config_of(shape: Shape, threshold: float, end: int) -> dict[str, Any]:
    """config.json as prosparse and other sparsellama readers understand it."""
    activation = {"hidden_act": "fatrelu", "hidden_act_param": threshold} if threshold else {"hidden_act": "relu"}
    return {
        "architectures": ["SparseLlamaForCausalLM"],
        "model_type": "sparsellama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.neurons,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_THETA,
        **activation,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": end,
        "eos_token_id": end,
    }


def tokenizer_config_of(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
    }


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(network: Network, folder: Path) -> None:
    """bf16 safetensors in shards, with their index."""
    entries = [
        Entry(f"model.{name}", tuple(p.shape), torch.bfloat16, lambda p=p: p.detach().cpu().bfloat16())
        for name, p in network.named_parameters()
    ]
    shards = split_shards(entries, SHARD_BYTES)
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, lambda n_bytes: None)
        weight_map.update({entry.name: file for entry in shard})
    total = sum(entry.nbytes for entry in entries)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_model(network: Network, tokenizer: Tokenizer, threshold: float, folder: Path) -> None:
    """Weights, config and tokenizer into a folder that does not exist; it appears whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    write_weights(network, partial)
    write_json(partial / "config.json", config_of(network.shape, threshold, tokenizer.token_to_id(END)))
    write_json(partial / "tokenizer_config.json", tokenizer_config_of(network.shape))
    tokenizer.save(str(partial / "tokenizer.json"))
    os.replace(partial, folder)
