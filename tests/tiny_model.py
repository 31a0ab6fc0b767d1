"""Small random model folders in Hugging Face's format, for tests that need one on disk.

    folder = write_tiny(tmp_path / "model", family="minicpm", shards=2)

Weights have the scale of a trained network (1 / sqrt(columns)), so logits are finite and tokens differ, and about half
of the neurons are active under ReLU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# What a family's own config.json says beyond the sizes. The FATReLU threshold is large, so that it matters here.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "relu"},
    "sparsellama": {
        "model_type": "sparsellama",
        "architectures": ["SparseLlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM"},
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.25,
    },
    "minicpm": {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.25,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 16,
    },
    "bamboo": {
        "model_type": "bamboo",
        "architectures": ["BambooForCausalLM"],
        "hidden_act": "relu",
        "sliding_window": 24,
    },
}


def write_tiny(
    folder: str | Path,
    *,
    family: str = "llama",
    shards: int = 1,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    hidden: int = 64,
    neurons: int = 96,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    vocab: int = 128,
    max_position: int = 128,
    seed: int = 0,
    weights: str = "safetensors",
    **keys: Any,
) -> Path:
    """Write config.json and weights; the same arguments give the same bytes.

    Args:
        folder: made if it does not exist.
        family: one of `FAMILIES`.
        shards: number of weight files; more than one come with an index.
        weights: "safetensors", or "bin" for torch.save files as old repositories have them.
        keys: further keys of config.json; they replace the family's own, and None removes a key.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        **FAMILIES[family],
        "hidden_size": hidden,
        "intermediate_size": neurons,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": max_position,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **keys,
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}, indent=2))
    tensors = tiny_tensors(
        tied=tied, dtype=dtype, hidden=hidden, neurons=neurons, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, vocab=vocab, seed=seed,
    )  # fmt: skip
    write_weights(folder, tensors, shards, weights)
    return folder


def tiny_tensors(
    *, tied: bool, dtype: torch.dtype, hidden: int, neurons: int, layers: int, heads: int, kv_heads: int, head_dim: int,
    vocab: int, seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Random tensors under their Hugging Face names, in the order that transformers saves them."""
    rng = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=rng) / columns**0.5).to(dtype)

    def norm() -> Tensor:
        return (1 + 0.1 * torch.randn(hidden, generator=rng)).to(dtype)

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        tensors |= {
            f"{layer}.self_attn.q_proj.weight": matrix(heads * head_dim, hidden),
            f"{layer}.self_attn.k_proj.weight": matrix(kv_heads * head_dim, hidden),
            f"{layer}.self_attn.v_proj.weight": matrix(kv_heads * head_dim, hidden),
            f"{layer}.self_attn.o_proj.weight": matrix(hidden, heads * head_dim),
            f"{layer}.mlp.gate_proj.weight": matrix(neurons, hidden),
            f"{layer}.mlp.up_proj.weight": matrix(neurons, hidden),
            f"{layer}.mlp.down_proj.weight": matrix(hidden, neurons),
            f"{layer}.input_layernorm.weight": norm(),
            f"{layer}.post_attention_layernorm.weight": norm(),
        }
    tensors["model.norm.weight"] = norm()
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], shards: int = 1, weights: str = "safetensors") -> None:
    """Write tensors into one file, or deal them in order into shards with an index."""
    stem, suffix = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[weights]
    save = save_file if weights == "safetensors" else torch.save
    if shards == 1:
        save(tensors, folder / f"{stem}.{suffix}")
        return
    names = list(tensors)
    size = -(-len(names) // shards)
    weight_map = {}
    for shard in range(shards):
        part = names[shard * size : (shard + 1) * size]
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
