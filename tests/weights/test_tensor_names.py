"""A checkpoint that is not the model of its config is refused from its headers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_tiny, write_weights

from prosparse.config import ModelConfig
from prosparse.errors import CheckpointError
from prosparse.weights import Checkpoint, load_weights
from prosparse.weights.names import check_names

GATE = "model.layers.1.mlp.gate_proj.weight"


def check(folder):
    check_names(Checkpoint(folder), ModelConfig.from_hf(folder))


def rewrite(folder, remove=(), **added):
    tensors = load_file(folder / "model.safetensors") | added
    write_weights(folder, {name: tensor for name, tensor in tensors.items() if name not in remove})


def set_key(folder, **keys):
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", [GATE, "model.norm.weight", "model.layers.0.self_attn.k_proj.weight"])
def test_missing_tensor_is_fatal(tmp_path, name):
    folder = write_tiny(tmp_path)
    rewrite(folder, remove=[name])
    with pytest.raises(CheckpointError, match=rf"1 of 21 tensors are missing: {name}; download"):
        check(folder)


def test_missing_lm_head_names_the_key_that_ties_it(tmp_path):
    folder = write_tiny(tmp_path, tied=True, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="lm_head.weight.*set tie_word_embeddings to true"):
        check(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.gate_proj.bias", "model.layers.0.mlp.experts.0.w1.weight", "score"]
)
def test_unknown_tensor_is_fatal(tmp_path, name):
    folder = write_tiny(tmp_path)
    rewrite(folder, **{name: torch.zeros(4)})
    with pytest.raises(CheckpointError, match=f"holds what a llama model does not have: {name}"):
        check(folder)


def test_tables_of_rotary_embeddings_are_ignored(tmp_path):
    folder = write_tiny(tmp_path)
    rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    check(folder)


@pytest.mark.parametrize("layers", [1, 3, 2**31 - 1])
def test_number_of_layers_must_agree(tmp_path, layers):
    folder = write_tiny(tmp_path)
    set_key(folder, num_hidden_layers=layers)
    with pytest.raises(CheckpointError, match=f"num_hidden_layers {layers}, but the weights have 2 layers"):
        check(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("intermediate_size", 97, r"gate_proj.weight is \[96, 64\], but config.json makes it \[97, 64\]"),
        ("vocab_size", 130, r"embed_tokens.weight is \[128, 64\], but config.json makes it \[130, 64\]"),
        ("num_key_value_heads", 4, r"k_proj.weight is \[32, 64\], but config.json makes it \[64, 64\]"),
        ("hidden_size", 2**30, r"is \[128, 64\], but config.json makes it \[128, 1073741824\]"),
    ],
)
def test_wrong_shape_is_found_before_anything_is_allocated(tmp_path, key, value, message):
    folder = write_tiny(tmp_path)
    set_key(folder, **{key: value})
    with pytest.raises(CheckpointError, match=message):
        load_weights(Checkpoint(folder), ModelConfig.from_hf(folder))


def test_transposed_matrix_of_the_same_size_is_refused(tmp_path):
    folder = write_tiny(tmp_path)
    rewrite(folder, **{GATE: torch.zeros(64, 96)})
    with pytest.raises(CheckpointError, match=rf"{GATE} is \[64, 96\], but config.json makes it \[96, 64\]"):
        check(folder)
