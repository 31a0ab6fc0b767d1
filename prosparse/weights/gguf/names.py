"""What GGUF calls the tensors of a llama or MiniCPM model, and the check that a file holds exactly one.

The names are those of llama.cpp's converter. It also exchanges rows of q and k (and of their biases): the rotary
embedding pairs neighbours there, and halves of a head in Hugging Face's order, which is the one used here.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ...config import ModelConfig
from ...errors import CheckpointError, UnsupportedError
from ..checkpoint import listed
from ..names import bias_of, expected_shapes
from ..tables import LLAMA
from .file import GgufFile

LAYER = LLAMA.layer
GGUF_NAMES = {
    LLAMA.embed: "token_embd.weight",
    LLAMA.final_norm: "output_norm.weight",
    LLAMA.lm_head: "output.weight",
    LAYER.attention_norm: "blk.{}.attn_norm.weight",
    LAYER.q: "blk.{}.attn_q.weight",
    LAYER.k: "blk.{}.attn_k.weight",
    LAYER.v: "blk.{}.attn_v.weight",
    bias_of(LAYER.q): "blk.{}.attn_q.bias",
    bias_of(LAYER.k): "blk.{}.attn_k.bias",
    bias_of(LAYER.v): "blk.{}.attn_v.bias",
    LAYER.o: "blk.{}.attn_output.weight",
    LAYER.ffn_norm: "blk.{}.ffn_norm.weight",
    LAYER.gate: "blk.{}.ffn_gate.weight",
    LAYER.up: "blk.{}.ffn_up.weight",
    LAYER.down: "blk.{}.ffn_down.weight",
}
PREDICTOR = re.compile(r"blk\.(\d{1,9})\.fc([12])\.weight")
BLOCK = re.compile(r"blk\.(\d{1,9})\.")
NUMBER = re.compile(r"\.(\d{1,9})\.")


def gguf_name(name: str, file: GgufFile) -> str:
    """Where a file has the tensor that Hugging Face calls `name`; PowerInfer stores down transposed."""
    number = NUMBER.search(name)
    pattern = name if number is None else name.replace(number[0], ".{}.", 1)
    found = GGUF_NAMES[pattern].format(*number.groups() if number else ())
    turned = found.replace("ffn_down.", "ffn_down_t.")
    return turned if found not in file.tensors and turned in file.tensors else found


def is_turned(stored: str) -> bool:
    """Whether a tensor of a file is down with one neuron per row, which Hugging Face has as columns."""
    return "_down_t." in stored


def row_order(name: str, config: ModelConfig) -> Tensor | None:
    """The stored row of each row of q or k in Hugging Face's order; None for other tensors."""
    heads = {".q_proj.": config.heads, ".k_proj.": config.kv_heads}
    found = next((count for part, count in heads.items() if part in name), None)
    if found is None:
        return None
    return torch.arange(found * config.head_dim).view(found, config.head_dim // 2, 2).transpose(1, 2).flatten()


def check_tensors(file: GgufFile, config: ModelConfig) -> dict[str, str]:
    """Insist that a file holds the model of its keys, and nothing that would change what it computes.

    Returns:
        {Hugging Face name: name in the file}.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        UnsupportedError: a tensor that neither the model nor its predictors have.
    """
    arch = file.metadata["general.architecture"]
    layers = 1 + max((int(found[1]) for name in file.tensors if (found := BLOCK.match(name))), default=-1)
    if layers != config.layers:  # before names are made, of which a file may claim 2^31
        raise CheckpointError(
            f"{file.path}: {arch}.block_count is {config.layers}, but its tensors have {layers} layers; download the "
            "file again"
        )
    expected = expected_shapes(config)
    names = {name: gguf_name(name, file) for name in expected}
    if missing := [name for name in names.values() if name not in file.tensors]:
        raise CheckpointError(
            f"{file.path}: {len(missing)} of {len(expected)} tensors are missing: {listed(missing)}; download the file "
            "again, or use one that holds the whole model"
        )
    for name, shape in expected.items():
        stored = file.tensors[names[name]]
        wanted = shape[::-1] if is_turned(names[name]) else shape
        if stored.shape != wanted or stored.kind.format is None:
            raise CheckpointError(
                f"{file.path}: {names[name]} is {list(stored.shape)} {stored.kind.name}, but its keys make it "
                f"{list(wanted)}; they do not belong together: download the file again"
            )
    known = set(names.values())
    if unknown := [name for name in file.tensors if name not in known and not PREDICTOR.fullmatch(name)]:
        raise UnsupportedError(
            f"{file.path}: holds what prosparse does not compute in a {arch} model: {listed(unknown)}; use the "
            "original model in safetensors"
        )
    return names
