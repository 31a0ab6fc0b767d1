"""OPT, Falcon and MiniCPM-MoE: what their keys mean, and that the published number of parameters follows from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prosparse.config import ModelConfig
from prosparse.kernels.activation import Activation
from prosparse.weights.names import expected_shapes

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"
PARAMETERS = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "falcon-7b-relu": 6_921_720_704,
    "minicpm-moe-8x2b": 13_873_291_776,  # 27.75 GB in bf16
}


def read(name: str, **keys: Any) -> ModelConfig:
    config = json.loads((CONFIGS / f"{name}.json").read_text()) | keys
    return ModelConfig.from_hf({key: value for key, value in config.items() if value != "absent"})


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_layout_has_the_published_number_of_parameters(name: str) -> None:
    assert sum(math.prod(shape) for shape in expected_shapes(read(name)).values()) == PARAMETERS[name]


def test_opt() -> None:
    config = read("opt-6.7b")
    assert not config.gated and config.norm == "layer" and config.block == "sequential" and config.final_norm
    assert config.attention_bias and config.output_bias and config.ffn_bias
    assert (config.position_offset, config.embed_width) == (2, None)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (2, (2,), 1)
    small = read("opt-350m")
    assert (small.block, small.final_norm, small.embed_width) == ("post_norm", False, 512)
    assert not read("opt-6.7b", _remove_final_layer_norm=True).final_norm
    assert not read("opt-6.7b", enable_bias=False).ffn_bias
    assert read("opt-6.7b", model_type="absent") == config, "the class in architectures names the family too"
    assert read("opt-6.7b", activation_function="absent").activation == Activation("relu")


def test_falcon() -> None:
    old, new = read("falcon-7b-relu"), read("falcon-40b-relu")
    assert old.block == new.block == "parallel" and old.norm == new.norm == "layer"
    assert old.shared_norm and not new.shared_norm
    assert read("falcon-40b-relu", num_ln_in_parallel_attn=1).shared_norm
    assert not (old.attention_bias or old.output_bias or old.ffn_bias) and read("falcon-7b-relu", bias=True).ffn_bias
    assert read("falcon-7b-relu", multi_query=False).kv_heads == 71
    assert read("falcon-7b-relu", ffn_hidden_size=100).neurons == 100
    assert (new.bos_token_id, new.eos_token_ids) == (11, (11,))


def test_experts() -> None:
    config = read("minicpm-moe-8x2b")
    assert (config.experts, config.experts_per_token, config.ffns) == (8, 2, 8)
    assert config.neurons_per_token == 2 * 5760
    dense = read("minicpm-moe-8x2b", num_experts=0)
    assert (dense.experts, dense.ffns, dense.neurons_per_token) == (0, 1, 5760)
