"""Measure a packaged model on the packaged held-out text, without prosparse: Hugging Face's LLaMA, fp32, eager.

    python tests/assets/measure_card.py prosparse/assets/relu-llama-14m > prosparse/assets/relu-llama-14m/card.json

A window is `max_position_embeddings` predictions after as many tokens of context as precede them in it. The text is cut
into consecutive windows. "full" counts all of them, "sample" every `stride`-th: the part that a test measures again. A
neuron is active where its FFN activation times its up projection is not zero.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

HELD_OUT = Path(__file__).parents[2] / "prosparse" / "assets" / "text" / "held_out.txt.xz"
SAMPLE = 10_000  # predictions, more or less; two passes of the 14 M model over them take ten seconds on two cores
HOT_SHARE = 0.2


class Fatrelu(torch.nn.Module):
    """x where x >= threshold, else 0 (threshold 0: ReLU)."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < self.threshold, 0, x).relu()


def load_model(folder: Path, threshold: float) -> LlamaForCausalLM:
    """The model of a folder as transformers' own LLaMA in fp32."""
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "torch_dtype")}
    rope = {"rope_type": "default", "rope_theta": kept.pop("rope_theta")}
    model = LlamaForCausalLM(LlamaConfig(**{**kept, "hidden_act": "relu", "rope_parameters": rope}))
    tensors = {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}, result
    model.tie_weights()
    for layer in model.model.layers:
        layer.mlp.act_fn = Fatrelu(threshold)
    return model.float().eval()


def read_windows(folder: Path, predictions: int | None) -> tuple[Tensor, int, int]:
    """The measured windows, [windows, length + 1]; every how many-th of the text's they are; bytes predicted."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(lzma.decompress(HELD_OUT.read_bytes()).decode()).ids)
    length = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    count = (len(ids) - 1) // length
    stride = count * length // predictions if predictions else 1
    starts = torch.arange(0, count, stride) * length
    windows = ids[starts[:, None] + torch.arange(length + 1)]
    special = set(tokenizer.get_added_tokens_decoder())
    n_bytes = {i: 0 if i in special else len(token) for token, i in tokenizer.get_vocab().items()}
    return windows, stride, sum(n_bytes[i] for i in windows[:, 1:].flatten().tolist())


@torch.inference_mode()
def run(model: LlamaForCausalLM, windows: Tensor) -> tuple[float, Tensor]:
    """Mean loss in nats per token, and how often each neuron was active, [layers, neurons]."""
    counts = torch.zeros(model.config.num_hidden_layers, model.config.intermediate_size)

    def count(layer: int) -> Any:
        def before(module: torch.nn.Module, arguments: tuple[Tensor]) -> None:
            counts[layer] += (arguments[0] != 0).flatten(0, -2).sum(0)

        return before

    for i, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(count(i))
    loss = 0.0
    for batch in windows.split(4):
        logits = model(batch[:, :-1], use_cache=False).logits
        loss += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return loss / windows[:, 1:].numel(), counts


def measure(folder: Path, sample: int | None) -> dict[str, Any]:
    """One part of card.json: about `sample` predictions, or the full text."""
    windows, stride, n_bytes = read_windows(folder, sample)
    predictions = windows[:, 1:].numel()
    threshold = json.loads((folder / "config.json").read_text())["hidden_act_param"]
    result: dict[str, Any] = {
        "text": "held_out.txt.xz",
        "window": windows.shape[1] - 1,
        "stride": stride,
        "windows": len(windows),
        "predictions": predictions,
        "bytes_per_token": round(n_bytes / predictions, 4),
    }
    for name, t in (("relu", 0.0), ("fatrelu", threshold)):
        loss, counts = run(load_model(folder, t), windows)
        hottest = counts.sort(dim=1, descending=True).values[:, : round(HOT_SHARE * counts.shape[1])]
        result[name] = {
            "threshold": t,
            "nats_per_token": round(loss, 4),
            "bits_per_byte": round(loss * predictions / math.log(2) / n_bytes, 4),
            "activation_sparsity": [round(x, 4) for x in (1 - counts.mean(1) / predictions).tolist()],
            "mean_activation_sparsity": round(1 - counts.mean().item() / predictions, 4),
            "share_of_hottest_20_percent": [round(x, 4) for x in (hottest.sum(1) / counts.sum(1)).tolist()],
            "never_active": (counts == 0).sum(1).tolist(),
        }
    return result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    json.dump({"sample": measure(folder, SAMPLE), "full": measure(folder, None)}, sys.stdout, indent=1)
    sys.stdout.write("\n")
