"""The README of an exported folder, written from its config, metrics and card, so that no number is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [relu, fatrelu, activation-sparsity, sparsellama]
---

# {name}

A small LLaMA whose FFN gate is a {activation}, so that for any token about {percent} % of its FFN neurons are exactly
zero. It exists so that `prosparse demo`, examples and tests have a real, trained, sparse model without a download.

**It writes English sentences without a plot.** It knows no facts, follows no instructions and forgets its subject
within a paragraph. Its training text is old fiction and carries the views of its time. Do not judge the speed of sparse
inference by it either: all of it fits in a processor's cache, while the models this engine is for do not.

| | |
|---|---|
| Parameters | {parameters:,} in bf16 ({megabytes:.1f} MB) |
| Layers, hidden, neurons | {num_hidden_layers}, {hidden_size}, {intermediate_size} |
| Heads, key-value heads, head size | {num_attention_heads}, {num_key_value_heads}, {head_dim} |
| Vocabulary | {vocab_size}, byte-level BPE; embedding and lm_head tied |
| Context | {max_position_embeddings} tokens |
| Activation | {activation}, gated |
| Special tokens | `<|endoftext|>` {bos_token_id} (begin and end), `<|pad|>` |
| Config | `sparsellama`; tensor names are those of LLaMA |

## Measured on untrained text

`{text}` in windows of {window} tokens, with Hugging Face's LLaMA in fp32, by
`tools/measure_card.py`. The full text gives {predictions} predictions
({bytes_per_token} bytes per token), the sample is every {stride}th window: {sample_predictions} predictions.
`card.json` holds the same numbers.
"""

PREDICTOR = """
The layer table is over the full text, all but its first column with the threshold. A neuron counts as active where
activation times up projection is not zero. The predictor is the training-free rank-{rank} guess that
`tools/low_rank_predictor.py` defines, calibrated on other text to a recall of {calibrated_to_recall}.
"""

TRAINING = """
## Training

{begin} {tokens} tokens in {steps} steps, {hours:.1f} hours of processor time, with `tools/train_embedded.py`
(`docs/training.md`): Muon and AdamW, a constant learning rate and a decay from {decay_from} tokens on; L1 factors
{l1}. The last 1.5 % of the paragraphs of each book were not read. `card.json` has the command and the books.
{note}
### Thresholds

On calibration text, which is no part of the text above, in fp32. The threshold is the largest that costs at
most {tolerance} nats and keeps the sparsity asked for. Activation sparsity per layer:
"""

END = """
## Licence

The weights are published under the licence of this repository (Apache-2.0).
"""


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n"
        + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        .replace("| --- ", "|---")
        .replace("|  |", "| |")
        + "\n"
    )


def measured(card: dict[str, Any], activation: str) -> str:
    """The two tables of the card: per text and activation, and per layer."""
    names = [f"{part}, {kind}" for part in ("full text", "sample") for kind in ("ReLU", activation)]
    runs = [card[part][kind] for part in ("full", "sample") for kind in ("relu", "fatrelu")]
    keys = {
        "nats_per_token": "loss, nats per token",
        "bits_per_byte": "bits per byte of text",
        "mean_activation_sparsity": "activation sparsity, mean of layers",
    }
    full = card["full"]
    predictor = full["fatrelu"]["predictor"]
    columns = {
        "activation sparsity, ReLU": full["relu"]["activation_sparsity"],
        f"activation sparsity, {activation}": full["fatrelu"]["activation_sparsity"],
        "share of activations in the hottest 20 %": full["fatrelu"]["share_of_hottest_20_percent"],
        "neurons never active": full["fatrelu"]["never_active"],
        "predictor's recall": predictor["recall"],
        "predicted sparsity": predictor["predicted_sparsity"],
    }
    layers = [[i, *row] for i, row in enumerate(zip(*columns.values(), strict=True))]
    return (
        table(["", *names], [[words, *(run[key] for run in runs)] for key, words in keys.items()])
        + table(["Layer", *columns], layers)
        + PREDICTOR.format(**predictor)
    )


def describe(folder: Path, note: str) -> str:
    """README.md of a folder with config.json, metrics.json and card.json. `note` follows the part on training."""
    config, metrics, card = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "metrics", "card")
    )
    made, full, sample = metrics["made"], card["full"], card["sample"]
    activation = f"FATReLU {metrics['threshold']:g}" if metrics["threshold"] else "ReLU"
    begin = f"From the weights of `{made['init']}`, on another" if made["init"] else "From scratch, on"
    head = HEAD.format(
        name=folder.name,
        activation=activation,
        percent=round(100 * full["fatrelu"]["mean_activation_sparsity"]),
        parameters=made["parameters"],
        megabytes=2 * made["parameters"] / 1e6,
        **config,
        **{key: full[key] for key in ("text", "window", "predictions", "bytes_per_token")},
        stride=sample["stride"],
        sample_predictions=sample["predictions"],
    )
    training = TRAINING.format(
        begin=begin,
        tokens=made["tokens"],
        steps=made["steps"],
        hours=made["process_cpu_s"] / 3600,
        decay_from=made["schedule"]["decay_from"],
        l1=", ".join(map(str, made["schedule"]["l1"])) or "none",
        tolerance=made["threshold_tolerance"],
        note=f"\n{note.strip()}\n" if note else "",
    )
    n_layers = range(config["num_hidden_layers"])
    sweep = [[t, f"{loss:.4f}", *layers, f"{sum(layers) / len(layers):.4f}"] for t, loss, layers in metrics["sweep"]]
    thresholds = table(["Threshold", "loss, nats per token", *(f"layer {i}" for i in n_layers), "mean"], sweep)
    generated = "".join(
        f"\n`--prompt {json.dumps(part['prompt'])} {part['options']}`\n\n    "
        + part["text"].rstrip("\n").replace("\n", "\n    ")
        + "\n"
        for part in card["generated"]
    )
    samples = f"\n## What `prosparse generate` prints\n{generated}"
    return head + measured(card, activation) + samples + training + thresholds + END
