"""The network that is trained: LLaMA with a ReLU gate, named as in Hugging Face's checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
ROPE_THETA = 1e4
QUERY_BLOCK = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. The embedding and the lm_head are one matrix."""

    vocab: int = 4096
    hidden: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    neurons: int = 1536
    context: int = 512

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def fatrelu(gate: Tensor, threshold: float) -> Tensor:
    """The gate where it is active, else 0: active is `not gate < threshold`, at threshold 0 (ReLU) `not gate <= 0`."""
    return F.relu(gate) if threshold == 0 else torch.where(gate < threshold, 0, gate)


def linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


class RmsNorm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_size = shape.head_size
        self.q_proj = linear(shape.hidden, shape.heads * shape.head_size)
        self.k_proj = linear(shape.hidden, shape.kv_heads * shape.head_size)
        self.v_proj = linear(shape.hidden, shape.kv_heads * shape.head_size)
        self.o_proj = linear(shape.heads * shape.head_size, shape.hidden)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (self.heads(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        attend = blocked_attention if x.device.type == "cpu" else whole_attention
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


whole_attention = partial(F.scaled_dot_product_attention, is_causal=True)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in blocks of queries, [batch, heads, tokens, head_size].

    Forward and backward take half the time of PyTorch's own on a CPU (bf16, 512 tokens, two Zen 4 cores), given
    contiguous operands: batched products of strided ones are several times slower.
    """
    q, k, v = (q * q.shape[-1] ** -0.5).contiguous(), k.contiguous(), v.contiguous()
    blocks = []
    for start in range(0, q.shape[2], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, q.shape[2])
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
        future = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=q.device).triu(start + 1)
        blocks.append((scores + future).softmax(-1) @ v[:, :, :end])
    return torch.cat(blocks, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves paired as in Hugging Face's LLaMA. x is [batch, heads, tokens, head_size]."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class GatedMlp(nn.Module):
    """A gated FFN; also returns its neurons' values, [batch, tokens, neurons]: zero where a neuron is not active."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = linear(shape.hidden, shape.neurons)
        self.up_proj = linear(shape.hidden, shape.neurons)
        self.down_proj = linear(shape.neurons, shape.hidden)
        self.threshold = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = fatrelu(self.gate_proj(x), self.threshold) * self.up_proj(x)
        return self.down_proj(value), value


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape.hidden)
        self.mlp = GatedMlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y, value = self.mlp(self.post_attention_layernorm(x))
        return x + y, value


class Network(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden)
        frequency = ROPE_THETA ** (-torch.arange(0, shape.head_size, 2).float() / shape.head_size)
        angle = torch.outer(torch.arange(shape.context).float(), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def initialize(self, generator: torch.Generator) -> None:
        """Normal weights; those that write to the residual stream are smaller by sqrt(2 * layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                deviation = 0.02 / (math.sqrt(2 * self.shape.layers) if into_residual else 1)
                nn.init.normal_(parameter, 0, deviation, generator=generator)

    def set_threshold(self, threshold: float) -> None:
        for layer in self.layers:
            layer.mlp.threshold = threshold

    def forward(self, windows: Tensor, *, with_l1: bool = False, with_counts: bool = False) -> dict[str, Tensor]:
        """Predict all but the first token of each window, [windows, tokens + 1].

        Returns:
            loss: mean nats per token. l1: mean over tokens and layers of the sum of |neuron values|, where asked for.
            counts: how often each neuron was active, [layers, neurons], where asked for.
        """
        x = self.embed_tokens(windows[:, :-1])
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        l1, counts = [], []
        for layer in self.layers:
            x, value = layer(x, cos, sin)
            if with_l1:
                l1.append(value.abs().sum(-1, dtype=torch.float32).mean())
            if with_counts:
                counts.append((value != 0).flatten(0, -2).sum(0))
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        result = {"loss": F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())}
        if with_l1:
            result["l1"] = torch.stack(l1).mean()
        if with_counts:
            result["counts"] = torch.stack(counts)
        return result
