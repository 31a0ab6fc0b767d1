"""Writes a synthetic model as a folder in Hugging Face's format, one layer in memory at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.weight import FLOATS

from ...config import ModelConfig
from ...config.to_hf import ARCHITECTURES, hf_keys
from ...errors import UnsupportedError
from ..model_weights import LayerWeights
from ..names import bias_of
from ..output import check_free, new_folder, write_weights
from ..tables import names_of
from ..writer import Entry
from .knobs import Knobs, settle
from .matrices import MatrixMaker, weight_bytes
from .model import Synthesis
from .tokenizer import write_tokenizer

SHARD_BYTES = 2 * 10**9
KEY = "prosparse_synthetic"  # of config.json
CARD = """# Synthetic weights

Random numbers in the shape of {name} ({layers} layers), made by `prosparse synth` to measure speed and memory and to
test software. What this model writes means nothing. `{key}` in config.json says how its FFN neurons behave:

{knobs}
"""
Pick = Callable[[LayerWeights], Tensor]


def write_synthetic(
    name: str,
    config: ModelConfig,
    destination: str | Path,
    knobs: Knobs | float,
    fmt: str = "bf16",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ModelConfig, Knobs]:
    """Write a synthetic model.

    Args:
        name: of the shape, for the card.
        config: the shape; see `as_plain` for what becomes of it.
        destination: the new folder.
        knobs, seed: see `synthetic_weights`.
        fmt: "fp32", "fp16" or "bf16".
        overwrite: replace `destination` if it is a model folder.
        progress: called with (done, total) bytes written.
        device: where the weights are made.

    Returns:
        The config that was written, and the knobs with those filled in that were left out.

    Raises:
        UserError: a knob out of its range, or a destination that exists.
        UnsupportedError: a weight format that is not written.
        MachineError: the disk is full or cannot be written.
    """
    if fmt not in FLOATS:
        raise UnsupportedError(f"synth: weights is {fmt!r}; a folder is written in {', '.join(FLOATS)}")
    target = Path(destination).absolute()
    check_free("synth", target, overwrite)
    config = as_plain(config)
    activity = settle(config, knobs)
    with new_folder("synth", target, weight_bytes(config, fmt)) as folder:
        write_tokenizer(folder, config)
        made = Synthesis(config, activity, MatrixMaker(fmt, seed, device=device), seed)
        write_weights(folder, _entries(config, made, FLOATS[fmt]), SHARD_BYTES, progress)
        described = {**activity.knobs.as_dict(), "shape": name, "seed": seed}
        document = {**hf_config(config, fmt), KEY: described}
        (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
        lines = "\n".join(f"- {knob}: {value}" for knob, value in described.items())
        card = CARD.format(name=name, layers=config.layers, key=KEY, knobs=lines)
        (folder / "README.md").write_text(card)
    return config, activity.knobs


def as_plain(config: ModelConfig) -> ModelConfig:
    """The shape as a model that transformers runs as it is: a llama with ReLU, without MiniCPM's scales.

    Nothing is lost by it: weights are made for the config, so scales and thresholds are in their sizes and biases. A
    dReLU shape stays what it is, since transformers has no class for it but `prosparse.patched` does.
    """
    if config.family == "opt":
        return dataclasses.replace(config, activation=Activation("relu"))
    activation = Activation("relu", on_up=True) if config.activation.on_up else Activation("relu")
    if config.activation.kind == "relu2":
        activation = config.activation
    family = "bamboo" if activation.on_up else "llama"
    return dataclasses.replace(
        config, family=family, activation=activation, embed_scale=1.0, residual_scale=1.0, logit_scale=1.0
    )


def hf_config(config: ModelConfig, fmt: str) -> dict[str, Any]:
    """config.json of a plain config."""
    return {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        **hf_keys(config),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0],
        "pad_token_id": config.pad_token_id,
        "torch_dtype": str(FLOATS[fmt]).removeprefix("torch."),
    }


class _Parts:
    """The layers of a synthesis by number, of which only the latest is kept."""

    def __init__(self, made: Synthesis) -> None:
        self._layers, self._number = made.layers(), -1
        self._layer: LayerWeights | None = None

    def read(self, number: int, pick: Pick, dtype: torch.dtype) -> Tensor:
        """A tensor of a layer, on the CPU; layers are asked for in order."""
        while self._number < number:
            self._layer = None  # makes room for the next
            self._layer, self._number = next(self._layers), self._number + 1
        assert self._layer is not None and self._number == number, "layers are written in order"
        return pick(self._layer).to("cpu", dtype)


def _entries(config: ModelConfig, made: Synthesis, dtype: torch.dtype) -> list[Entry]:
    names, parts, hidden = names_of(config), _Parts(made), config.hidden
    table = (config.vocab, hidden)
    entries = [Entry(names.embed, table, dtype, lambda: made.embed.codes.cpu())]
    for number in range(config.layers):
        for pattern, shape, pick in _layer_tensors(config):
            entries.append(Entry(pattern.format(number), shape, dtype, partial(parts.read, number, pick, dtype)))
    ends = {
        names.final_norm: made.final_norm,
        bias_of(names.final_norm): made.final_norm_bias,
        names.positions: made.positions,
    }
    for name, tensor in ends.items():
        if tensor is not None:
            entries.append(Entry(name, tuple(tensor.shape), dtype, partial(tensor.to, "cpu", dtype)))
    if not config.tied_embeddings:
        entries.append(Entry(names.lm_head, table, dtype, lambda: made.lm_head().codes.cpu()))
    return entries


def _layer_tensors(config: ModelConfig) -> list[tuple[str, tuple[int, ...], Pick]]:
    """Name, shape and place of what a layer has in a checkpoint."""
    n, hidden, neurons = names_of(config).layer, config.hidden, config.neurons
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    v_start = q_rows + kv_rows
    return _layer_biases(config) + [
        (n.attention_norm, (hidden,), lambda own: own.attention_norm),
        (n.q, (q_rows, hidden), lambda own: own.qkv.codes[:q_rows]),
        (n.k, (kv_rows, hidden), lambda own: own.qkv.codes[q_rows:v_start]),
        (n.v, (kv_rows, hidden), lambda own: own.qkv.codes[v_start:]),
        (n.o, (hidden, q_rows), lambda own: own.o.codes),
        (n.ffn_norm, (hidden,), lambda own: own.ffn_norm),
        (n.gate, (neurons, hidden), lambda own: own.gate.codes),
        *([(n.up, (neurons, hidden), lambda own: own.up.codes)] if n.up else []),
        (n.down, (hidden, neurons), lambda own: own.down.codes.t()),
    ]


def _layer_biases(config: ModelConfig) -> list[tuple[str, tuple[int, ...], Pick]]:
    """The biases of a layer in a checkpoint; all of these models' are zero."""
    n = names_of(config).layer
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        **({n.attention_norm: config.hidden, n.ffn_norm: config.hidden} if config.norm == "layer" else {}),
        **({n.q: q_rows, n.k: kv_rows, n.v: kv_rows} if config.attention_bias else {}),
        **({n.o: config.hidden} if config.output_bias else {}),
        **({n.gate: config.neurons, n.down: config.hidden} if config.ffn_bias else {}),
    }
    return [(bias_of(name), (size,), partial(_zeros, size)) for name, size in sizes.items()]


def _zeros(size: int, own: LayerWeights) -> Tensor:
    return torch.zeros(size)
