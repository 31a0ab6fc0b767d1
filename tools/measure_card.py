"""Measure a model on the packaged held-out text, without prosparse: Hugging Face's LLaMA, fp32, eager.

    python tools/measure_card.py tests/assets/relu-llama-1.5m > card.json

A card holds what is printed; that of a model which train_embedded.py exported also holds "made", how it was made.

A window is `max_position_embeddings` predictions after as many tokens of context as precede them in it. The text is cut
into consecutive windows. "full" counts all of them, "sample" every `stride`-th: the part that a test measures again. A
neuron is active where its FFN activation times its up projection is not zero. "predictor" judges the low-rank guess
that `low_rank_predictor.py` defines. "generated" is the one part made by prosparse: what its command line prints.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from low_rank_predictor import Judge, make_predictors, observed
from make_excerpts import read_text
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "prosparse" / "assets" / "text"
SAMPLE = 10_000  # predictions, more or less; two passes of the 14 M model over them take ten seconds on two cores
HOT_SHARE = 0.2
PROMPTS = ("Once upon a time", "The old captain looked at the sea and", '"I do not know," said the girl')
GENERATE = "--max-new-tokens 80 --temperature 0.7 --top-k 40 --mode exact --weights bf16 --device cpu"


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
    tensors = {name: t for path in sorted(folder.glob("model*.safetensors")) for name, t in load_file(path).items()}
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}, result
    model.tie_weights()
    for layer in model.model.layers:
        layer.mlp.act_fn = Fatrelu(threshold)
    return model.float().eval()


def read_windows(tokenizer: Tokenizer, text: str, length: int, predictions: int | None) -> tuple[Tensor, int, int]:
    """The measured windows, [windows, length + 1]; every how many-th of the text's they are; bytes predicted."""
    ids = torch.tensor(tokenizer.encode(text).ids)
    count = (len(ids) - 1) // length
    stride = max(1, count * length // predictions) if predictions else 1
    starts = torch.arange(0, count, stride) * length
    windows = ids[starts[:, None] + torch.arange(length + 1)]
    special = set(tokenizer.get_added_tokens_decoder())
    n_bytes = {i: 0 if i in special else len(token) for token, i in tokenizer.get_vocab().items()}
    return windows, stride, sum(n_bytes[i] for i in windows[:, 1:].flatten().tolist())


@torch.inference_mode()
def run(model: LlamaForCausalLM, windows: Tensor, judge: Judge | None) -> tuple[float, Tensor]:
    """Mean loss in nats per token, and how often each neuron was active, [layers, neurons]. `judge` looks on."""
    counts = torch.zeros(model.config.num_hidden_layers, model.config.intermediate_size)
    loss = 0.0
    with observed(model) as seen:
        for batch in windows.split(4):
            logits = model(batch[:, :-1], use_cache=False).logits
            loss += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            ).item()
            for layer, passes in enumerate(seen):
                counts[layer] += sum(active.sum(0) for _, active in passes)
            if judge:
                judge.add(seen)
            for passes in seen:
                passes.clear()
    return loss / windows[:, 1:].numel(), counts


def measure(folder: Path, sample: int | None, held_out: Path, calibration: Path) -> dict[str, Any]:
    """One part of a card: about `sample` predictions, or the full held-out text; `calibration` makes the predictor."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    length = config["max_position_embeddings"]
    windows, stride, n_bytes = read_windows(tokenizer, read_text(held_out), length, sample)
    predictions = windows[:, 1:].numel()
    threshold = config.get("hidden_act_param", 0.0)
    result: dict[str, Any] = {
        "text": held_out.name,
        "window": windows.shape[1] - 1,
        "stride": stride,
        "windows": len(windows),
        "predictions": predictions,
        "bytes_per_token": round(n_bytes / predictions, 4),
    }
    for name, t in (("relu", 0.0), ("fatrelu", threshold)):
        model = load_model(folder, t)
        calibrated = name == "fatrelu"
        judge = Judge(make_predictors(model, tokenizer, read_text(calibration), length, t)) if calibrated else None
        loss, counts = run(model, windows, judge)
        hottest = counts.sort(dim=1, descending=True).values[:, : round(HOT_SHARE * counts.shape[1])]
        result[name] = {
            "threshold": t,
            "nats_per_token": round(loss, 4),
            "bits_per_byte": round(loss * predictions / math.log(2) / n_bytes, 4),
            "activation_sparsity": [round(x, 4) for x in (1 - counts.mean(1) / predictions).tolist()],
            "mean_activation_sparsity": round(1 - counts.mean().item() / predictions, 4),
            "share_of_hottest_20_percent": [round(x, 4) for x in (hottest.sum(1) / counts.sum(1)).tolist()],
            "never_active": (counts == 0).sum(1).tolist(),
            **({"predictor": judge.says()} if judge else {}),
        }
    return result


def generate(folder: Path, prompt: str, seed: int) -> dict[str, Any]:
    """What `prosparse generate` prints, and the options it was given."""
    options = f"{GENERATE} --seed {seed}"
    command = [sys.executable, "-m", "prosparse", "generate", str(folder), "--prompt", prompt, *shlex.split(options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
    return {"prompt": prompt, "seed": seed, "options": options, "text": printed.stdout}


def make_card(folder: Path, held_out: Path, calibration: Path, prompts: Sequence[str] = PROMPTS) -> dict[str, Any]:
    """A whole card but for how the model was made."""
    return {
        "generated": [generate(folder, prompt, seed) for seed, prompt in enumerate(prompts, start=1)],
        "sample": measure(folder, SAMPLE, held_out, calibration),
        "full": measure(folder, None, held_out, calibration),
    }


if __name__ == "__main__":
    json.dump(make_card(Path(sys.argv[1]), TEXT / "held_out.txt.xz", TEXT / "calibration.txt.xz"), sys.stdout, indent=1)
    sys.stdout.write("\n")
