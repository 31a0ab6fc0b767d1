"""Small random folders of MiniCPM-V: the language model under llm.*, and something of the vision side beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_families import Maker, finish


def write_minicpmv(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """What MiniCPMV saves; version 2.6 is built on Qwen 2, whose q, k and v have biases."""
    hidden, neurons, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_rows, bias = hidden // heads * config["num_key_value_heads"], config.get("version") == 2.6
    maker = Maker(seed)
    maker.matrix("llm.model.embed_tokens", config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"llm.model.layers.{i}"
        maker.matrix(f"{layer}.self_attn.q_proj", hidden, hidden, bias)
        maker.matrix(f"{layer}.self_attn.k_proj", kv_rows, hidden, bias)
        maker.matrix(f"{layer}.self_attn.v_proj", kv_rows, hidden, bias)
        maker.matrix(f"{layer}.self_attn.o_proj", hidden, hidden)
        maker.matrix(f"{layer}.mlp.gate_proj", neurons, hidden)
        maker.matrix(f"{layer}.mlp.up_proj", neurons, hidden)
        maker.matrix(f"{layer}.mlp.down_proj", hidden, neurons)
        maker.norm(f"{layer}.input_layernorm", hidden, bias=False)
        maker.norm(f"{layer}.post_attention_layernorm", hidden, bias=False)
    maker.norm("llm.model.norm", hidden, bias=False)
    maker.matrix("llm.lm_head", config["vocab_size"], hidden)
    maker.matrix("vpm.encoder.layers.0.self_attn.q_proj", 24, 24, bias=True)
    maker.norm("vpm.post_layernorm", 24)
    maker.matrix("resampler.kv_proj", hidden, 24)
    return finish(folder, config, maker.tensors)
