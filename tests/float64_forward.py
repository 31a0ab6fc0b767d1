"""The forward pass in float64, written from the published formulas and from none of our code.

    llama     h += o(attention(norm h));  h += down(act(gate x) * up x), x = norm h;  logits = lm_head(norm h)
    minicpm   h = embed * scale_emb;  every += times scale_depth / sqrt(layers);  norm h / (hidden / dim_model_base)
    experts   (minicpm) down sum over the two best e of softmax(their scores)[e] * (act(w1[e] x) * w3[e] x) w2[e]
    MiniCPM-V the tensors named llm.*, of these families; those of version 2.6 have biases on q, k and v
    bamboo    act(gate x) * relu(up x);  attention sees the latest sliding_window positions, its own included

Rotary angles are position * theta^(-2i / head_dim) in float32, as all these models were trained; the rest is float64.
Dynamic scaling multiplies theta by (factor n / trained - (factor - 1))^(head_dim / (head_dim - 2)) for n > trained.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class Trace:
    """What the pass saw; lists have one [tokens, neurons] entry per layer.

    Args:
        logits: [tokens, vocab].
        gates: pre-activations.
        products: act(gate) * up.
    """

    logits: Tensor
    gates: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)

    def nearest_to(self, threshold: float) -> float:
        """Smallest distance of any gate from a threshold."""
        return min(float((gate - threshold).abs().min()) for gate in self.gates)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json, and every tensor in float64 under its name in the files."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    config = json.loads((folder / "config.json").read_text())
    if "MiniCPMV" in config["architectures"]:
        tensors = {name.removeprefix("llm."): t for name, t in tensors.items() if name.startswith("llm.")}
        config["architectures"] = ["MiniCPMForCausalLM" if "scale_emb" in config else "LlamaForCausalLM"]
    return config, {name: t.double() for name, t in tensors.items()}


def forward(folder: Path, token_ids: list[int], embeds: Tensor | None = None, **changes: Any) -> Trace:
    """Logits of every position and what the FFNs did; `changes` replace keys of config.json.

    `embeds` [tokens, hidden] are what the first layer takes instead of the scaled embeddings of token_ids.
    """
    config, tensors = read_folder(folder)
    config |= changes
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    is_minicpm = "MiniCPMForCausalLM" in config["architectures"]
    residual_scale = config["scale_depth"] / math.sqrt(layers) if is_minicpm else 1.0
    eps = config["rms_norm_eps"]

    trace = Trace(torch.empty(0))
    h = tensors["model.embed_tokens.weight"][token_ids] * (config["scale_emb"] if is_minicpm else 1.0)
    h = h if embeds is None else embeds.double()
    for i in range(layers):
        own = {
            name.removeprefix(f"model.layers.{i}."): t
            for name, t in tensors.items()
            if name.startswith(f"model.layers.{i}.")
        }
        h = h + residual_scale * attention(config, own, rms_norm(h, own["input_layernorm.weight"], eps))
        x = rms_norm(h, own["post_attention_layernorm.weight"], eps)
        h = h + residual_scale * (experts(config, own, x) if config.get("num_experts") else ffn(config, own, x, trace))
    h = rms_norm(h, tensors["model.norm.weight"], eps)
    if is_minicpm:
        h = h / (hidden / config["dim_model_base"])
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    trace.logits = h @ head.T
    return trace


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def attention(config: dict[str, Any], own: dict[str, Tensor], x: Tensor) -> Tensor:
    tokens, head_dim = x.shape[0], config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = rope_theta(config, tokens, head_dim)
    q, k, v = (
        (x @ own[f"self_attn.{part}_proj.weight"].T + own.get(f"self_attn.{part}_proj.bias", 0)).view(
            tokens, -1, head_dim
        )
        for part in "qkv"
    )
    q, k = rotate(q, theta), rotate(k, theta)
    return attend(q, k, v, config.get("sliding_window") or tokens) @ own["self_attn.o_proj.weight"].T


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]; heads that are neighbours share a key head."""
    tokens, heads, head_dim = q.shape
    out = torch.zeros(tokens, heads, head_dim, dtype=torch.float64)
    for head in range(heads):
        shared = head // (heads // k.shape[1])
        for t in range(tokens):
            seen = slice(max(0, t + 1 - window), t + 1)
            score = k[seen, shared] @ q[t, head] / math.sqrt(head_dim)
            out[t, head] = torch.softmax(score, 0) @ v[seen, shared]
    return out.reshape(tokens, heads * head_dim)


def rope_theta(config: dict[str, Any], tokens: int, head_dim: int) -> float:
    theta, scaling = config.get("rope_theta", 10000.0), config.get("rope_scaling") or {}
    trained = config["max_position_embeddings"]
    if scaling.get("type") == "dynamic" and tokens > trained:
        factor = scaling["factor"]
        theta *= (factor * tokens / trained - (factor - 1)) ** (head_dim / (head_dim - 2))
    return theta


def rotate(x: Tensor, theta: float) -> Tensor:
    """x [tokens, heads, head_dim], position t in row t."""
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half))
    angle = torch.outer(torch.arange(x.shape[0], dtype=torch.float32), frequency).double()[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def ffn(config: dict[str, Any], own: dict[str, Tensor], x: Tensor, trace: Trace) -> Tensor:
    gate, up = x @ own["mlp.gate_proj.weight"].T, x @ own["mlp.up_proj.weight"].T
    if "BambooForCausalLM" in config["architectures"]:
        up = up.clamp_min(0)
    trace.gates.append(gate)
    trace.products.append(activate(config, gate) * up)
    return trace.products[-1] @ own["mlp.down_proj.weight"].T


def experts(config: dict[str, Any], own: dict[str, Tensor], x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t, token in enumerate(x):
        scores = own["mlp.gate.weight"] @ token
        best = sorted(range(len(scores)), key=lambda e: -float(scores[e]))[: config["num_experts_per_tok"]]
        shares = torch.softmax(scores[best], 0)
        for share, e in zip(shares, best, strict=True):
            w1, w2, w3 = (own[f"mlp.experts.{e}.{name}.weight"] for name in ("w1", "w2", "w3"))
            out[t] += share * (w2 @ (activate(config, w1 @ token) * (w3 @ token)))
    return out


def activate(config: dict[str, Any], gate: Tensor) -> Tensor:
    kind = config["hidden_act"]
    if kind == "fatrelu":
        return gate * (gate >= config["hidden_act_param"])
    if kind == "silu":
        return gate / (1 + torch.exp(-gate))
    return gate.clamp_min(0) ** (2 if kind == "relu2" else 1)
