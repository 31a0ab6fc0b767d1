"""The models that docs/models.md lists: for each the config of its repository, and weights of its layout in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from float64_forward import forward
from float64_plain import forward_plain
from tiny_engine import make_model
from tiny_families import write_experts, write_falcon, write_opt
from tiny_tokenizer import VOCAB
from tiny_vision import write_minicpmv
from torch import Tensor

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"

# What is small about the small model; heads and key heads keep the ratio of the true one.
GROUPED = {"hidden": 48, "neurons": 80, "heads": 6, "kv_heads": 2, "head_dim": 8}
FULL = {"hidden": 48, "neurons": 80, "heads": 6, "kv_heads": 6, "head_dim": 8}
MISTRAL = {"hidden": 48, "neurons": 80, "heads": 4, "kv_heads": 1, "head_dim": 12}
EXPERTS = {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 6}
OPT = {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 192, "num_attention_heads": 4, "bos_token_id": 1}
FALCON = {"hidden_size": 48, "num_attention_heads": 6, "bos_token_id": 1}
VISION = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 6}
LLAMA3 = {"num_attention_heads": 4, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
QWEN2 = {**LLAMA3, "hidden_size": 56, "num_attention_heads": 7}
HF_NAME = {
    "hidden": "hidden_size", "neurons": "intermediate_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "layers": "num_hidden_layers", "vocab": "vocab_size",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        model: as the table names it.
        config: file of tests/fixtures/configs, as published.
        sizes: of the small weights: arguments of `write_tiny`, or keys of config.json where `write` is given.
        changes: keys that other repositories of the same row, or the small size, have otherwise.
        write: writes the small folder of a config; None is `write_tiny`.
    """

    model: str
    config: str
    sizes: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    write: Callable[[Path, dict[str, Any]], Path] | None = None

    def published(self) -> dict[str, Any]:
        """The keys of config.json at full size."""
        keys = json.loads((CONFIGS / f"{self.config}.json").read_text()) | self.changes
        return {key: value for key, value in keys.items() if value is not None}

    def make(self, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        """A folder with small weights, the published keys and a tokenizer."""
        keys = self.published()
        if self.write is not None:
            return self.write(folder, keys | {"vocab_size": VOCAB, "num_hidden_layers": 3} | self.sizes)
        sizes = {"vocab": VOCAB, "layers": 3, **self.sizes}
        tied = keys.get("tie_word_embeddings", keys["architectures"] == ["MiniCPMForCausalLM"])
        make_model(folder, tied=tied, dtype=dtype, **sizes)
        small = {hf: sizes[ours] for ours, hf in HF_NAME.items() if hf in keys}
        (folder / "config.json").write_text(json.dumps(keys | small))
        return folder

    def expected(self, folder: Path, ids: list[int]) -> Tensor:
        """Logits of every position in float64, [tokens, vocab]."""
        if self.write in (write_opt, write_falcon):
            return forward_plain(folder, ids)
        return forward(folder, ids).logits


LLAMA_FORMAT = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "auto_map": None, "tie_word_embeddings": False,
    "max_position_embeddings": 2048, "scale_emb": None, "scale_depth": None, "dim_model_base": None,
}  # fmt: skip
ROWS = [
    Row("MiniCPM-S-1B sft", "minicpm-s-1b-sft", GROUPED),
    Row("MiniCPM-S-1B sft llama format", "minicpm-s-1b-llama-format", GROUPED),
    Row("ProSparse-LLaMA-2-7B", "prosparse-llama-2-7b", FULL),
    Row("ProSparse-LLaMA-2-13B", "prosparse-llama-2-13b", FULL),
    Row("ReluLLaMA-7B", "relullama-7b", FULL),
    Row("ReluLLaMA-70B", "relullama-70b", {**GROUPED, "hidden": 64, "heads": 8, "kv_heads": 1}),
    Row("Bamboo-7B base, DPO", "bamboo-base", MISTRAL, {"sliding_window": 24}),
    Row("TurboSparse-Mistral-7B", "turbosparse-mistral", MISTRAL, {"sliding_window": 24}),
    Row("any of these with ReLU^2", "relullama-7b", FULL, {"hidden_act": "relu2"}),
    Row("MiniCPM-1B sft", "minicpm-1b-sft", GROUPED),
    Row("MiniCPM-2B sft", "minicpm-2b-sft", FULL),
    Row("MiniCPM-2B dpo", "minicpm-2b-sft", FULL, {"max_position_embeddings": 2048, "torch_dtype": "float32"}),
    Row("MiniCPM-2B llama format", "minicpm-2b-sft", FULL, LLAMA_FORMAT),
    Row("MiniCPM-2B 128k", "minicpm-2b-128k", {**FULL, "vocab": 264}),
    Row("MiniCPM-V 2.0 language model", "minicpm-v-2", VISION, write=write_minicpmv),
    Row("MiniCPM-Llama3-V 2.5 language model", "minicpm-llama3-v-2_5", VISION | LLAMA3, write=write_minicpmv),
    Row("MiniCPM-V 2.6 language model", "minicpm-v-2_6", VISION | QWEN2, write=write_minicpmv),
    Row("MiniCPM-MoE-8x2B", "minicpm-moe-8x2b", EXPERTS, write=write_experts),
    Row("OPT-125M to 66B", "opt-6.7b", OPT, write=write_opt),
    Row("OPT-350M", "opt-350m", {**OPT, "word_embed_proj_dim": 40}, write=write_opt),
    Row("Falcon-7B with ReLU", "falcon-7b-relu", FALCON, write=write_falcon),
    Row("Falcon-40B, 180B with ReLU", "falcon-40b-relu", {**FALCON, "num_kv_heads": 2}, write=write_falcon),
]
SILU = [row for row in ROWS if row.write is None and row.published()["hidden_act"] == "silu"]
