"""The configs of the models that prosparse is made for, as published, against the values they mean."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prosparse.config import ModelConfig, RopeConfig
from prosparse.config.shapes import SHAPES, shape
from prosparse.errors import UserError
from prosparse.kernels.activation import Activation

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"

SILU, DRELU = Activation("silu"), Activation("relu", on_up=True)
LLAMA3_ROPE = RopeConfig("llama3", 500000.0, 32.0, 1.0, 4.0, 8192)
FATRELU_1B, FATRELU_7B, RELU = Activation("fatrelu", 0.03), Activation("fatrelu", 0.01), Activation("relu")
# fixture: family, (hidden, neurons, layers, heads, kv_heads, head_dim, vocab, max_position), activation, tied, rope
MODELS = {
    "minicpm-s-1b-sft": ("minicpm", (1536, 3840, 52, 24, 8, 64, 73440, 4096), FATRELU_1B, True, RopeConfig()),
    "minicpm-s-1b-v5": ("minicpm", (1536, 3840, 52, 24, 8, 64, 73440, 4096), FATRELU_1B, True, RopeConfig()),
    "minicpm-s-1b-llama-format": ("llama", (1536, 3840, 52, 24, 8, 64, 73440, 4096), RELU, False, RopeConfig()),
    "minicpm-1b-sft": ("minicpm", (1536, 3840, 52, 24, 8, 64, 73440, 4096), SILU, True, RopeConfig()),
    "minicpm-2b-sft": ("minicpm", (2304, 5760, 40, 36, 36, 64, 122753, 4096), SILU, True, RopeConfig()),
    "minicpm-2b-128k": (
        "minicpm", (2304, 5760, 40, 36, 36, 64, 122760, 65536), SILU, False, RopeConfig("dynamic", 1e6, 4.0),
    ),
    "prosparse-llama-2-7b": ("llama", (4096, 11008, 32, 32, 32, 128, 32000, 4096), FATRELU_7B, False, RopeConfig()),
    "prosparse-llama-2-13b": ("llama", (5120, 13824, 40, 40, 40, 128, 32000, 4096), FATRELU_7B, False, RopeConfig()),
    "relullama-7b": ("llama", (4096, 11008, 32, 32, 32, 128, 32000, 2048), RELU, False, RopeConfig()),
    "relullama-70b": ("llama", (8192, 28672, 80, 64, 8, 128, 32000, 2048), RELU, False, RopeConfig()),
    "bamboo-base": ("bamboo", (4096, 14336, 32, 32, 8, 128, 32000, 32768), DRELU, False, RopeConfig()),
    "turbosparse-mistral": ("bamboo", (4096, 14336, 32, 32, 8, 128, 32064, 32768), DRELU, False, RopeConfig()),
    "minicpm-moe-8x2b": ("minicpm", (2304, 5760, 40, 36, 36, 64, 122753, 4096), SILU, True, RopeConfig()),
    "minicpm-v-2": ("minicpm", (2304, 5760, 40, 36, 36, 64, 122753, 4096), SILU, False, RopeConfig()),
    "minicpm-llama3-v-2_5": (
        "llama", (4096, 14336, 32, 32, 8, 128, 128256, 8192), SILU, False, RopeConfig(theta=5e5),
    ),
    "minicpm-v-2_6": ("llama", (3584, 18944, 28, 28, 4, 128, 151666, 32768), SILU, False, RopeConfig(theta=1e6)),
    "opt-125m": ("opt", (768, 3072, 12, 12, 12, 64, 50272, 2048), RELU, True, RopeConfig("none")),
    "opt-350m": ("opt", (1024, 4096, 24, 16, 16, 64, 50272, 2048), RELU, True, RopeConfig("none")),
    "opt-6.7b": ("opt", (4096, 16384, 32, 32, 32, 128, 50272, 2048), RELU, True, RopeConfig("none")),
    "opt-66b": ("opt", (9216, 36864, 64, 72, 72, 128, 50272, 2048), RELU, True, RopeConfig("none")),
    "falcon-7b-relu": ("falcon", (4544, 18176, 32, 71, 1, 64, 65024, 2048), RELU, True, RopeConfig()),
    "falcon-40b-relu": ("falcon", (8192, 32768, 60, 128, 8, 64, 65024, 2048), RELU, True, RopeConfig()),
    "llama-v5": ("llama", (2048, 8192, 16, 32, 8, 64, 128256, 131072), Activation("relu2"), True, LLAMA3_ROPE),
}  # fmt: skip
SHAPE_OF = {
    "minicpm-s-1b-sft": "minicpm-s-1b",
    "prosparse-llama-2-7b": "prosparse-llama-2-7b",
    "prosparse-llama-2-13b": "prosparse-llama-2-13b",
    "relullama-7b": "relullama-7b",
    "relullama-70b": "relullama-70b",
    "bamboo-base": "bamboo-7b",
    "turbosparse-mistral": "turbosparse-mistral-7b",
}


def read(name: str, threshold: float | None = None) -> ModelConfig:
    return ModelConfig.from_hf(CONFIGS / f"{name}.json", threshold)


def llama(**keys) -> dict:
    config = json.loads((CONFIGS / "relullama-7b.json").read_text()) | keys
    return {key: value for key, value in config.items() if value != "absent"}


def test_every_fixture_is_in_the_table():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_reads_published_config(name):
    family, sizes, activation, tied, rope = MODELS[name]
    config = read(name)
    assert config.family == family
    assert sizes == (
        config.hidden, config.neurons, config.layers, config.heads, config.kv_heads, config.head_dim, config.vocab,
        config.max_position,
    )  # fmt: skip
    assert (config.activation, config.tied_embeddings, config.rope) == (activation, tied, rope)
    assert config.norm_eps == (1e-6 if name == "minicpm-v-2_6" else 1e-5)


@pytest.mark.parametrize("name", SHAPE_OF)
def test_named_shape_is_the_published_model(name):
    assert read(name) == shape(SHAPE_OF[name])


def test_unknown_shape_lists_the_known():
    with pytest.raises(UserError, match="'llama-9b' is not known.*minicpm-s-1b.*tiny"):
        shape("llama-9b")
    assert shape("tiny") is SHAPES["tiny"]


def test_minicpm_scales_are_factors():
    config = read("minicpm-s-1b-sft")
    assert config.embed_scale == 12
    assert config.residual_scale == pytest.approx(0.194145, abs=1e-6)
    assert 1 / config.logit_scale == pytest.approx(6)


def test_missing_minicpm_scales_are_one_as_in_the_original_class():
    config = json.loads((CONFIGS / "minicpm-s-1b-sft.json").read_text())
    for key in ("scale_emb", "scale_depth", "dim_model_base"):
        del config[key]
    read_back = ModelConfig.from_hf(config)
    scales = (read_back.embed_scale, read_back.residual_scale, read_back.logit_scale)
    assert scales == (1, 1 / math.sqrt(52), 1 / 1536)
    assert "scale_emb, scale_depth, dim_model_base" in read_back.notes[0]


def test_llama_format_has_its_scales_folded_and_lost_its_threshold():
    config = read("minicpm-s-1b-llama-format")
    assert (config.embed_scale, config.residual_scale, config.logit_scale) == (1, 1, 1)
    assert "--fatrelu-threshold 0.03" in config.notes[0]
    restored = read("minicpm-s-1b-llama-format", threshold=0.03)
    assert restored.activation == FATRELU_1B and restored.notes == ()
    assert read("relullama-7b").notes == ()


def test_silu_is_noted_as_dense():
    assert "no exact zeros" in read("minicpm-2b-sft").notes[0]


def test_bamboo_window():
    assert read("bamboo-base").sliding_window == 4096
    config = json.loads((CONFIGS / "bamboo-base.json").read_text())
    assert ModelConfig.from_hf(config | {"sliding_window": None}).sliding_window is None
    assert ModelConfig.from_hf(llama(sliding_window=4096)).sliding_window is None  # Llama's class has no such key


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig("linear", factor=2.0)),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, RopeConfig("dynamic", factor=4.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 5.0}, RopeConfig(theta=7.0)),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5.0},
            RopeConfig("linear", 5.0, 2.0),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
            RopeConfig("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=2048),
        ),
    ],
    ids=str,
)
def test_reads_rope_in_old_and_new_spelling(keys, rope):
    assert ModelConfig.from_hf(llama(**keys)).rope == rope


@pytest.mark.parametrize(
    ("keys", "threshold", "activation"),
    [
        ({"hidden_act": "swish"}, None, SILU),
        ({"hidden_act": "absent"}, None, SILU),
        ({"hidden_act": "fatrelu", "hidden_act_param": 0.2}, None, Activation("fatrelu", 0.2)),
        ({"hidden_act": "fatrelu", "hidden_act_param": 0}, None, RELU),
        ({"hidden_act": "fatrelu"}, 0.1, Activation("fatrelu", 0.1)),
        ({"hidden_act": "fatrelu", "hidden_act_param": 0.2}, 0, RELU),
        ({"hidden_act": "relu"}, 0.1, Activation("fatrelu", 0.1)),
    ],
)
def test_activation_and_threshold(keys, threshold, activation):
    assert ModelConfig.from_hf(llama(**keys), threshold).activation == activation


def test_threshold_keeps_the_relu_on_up_of_bamboo():
    assert read("bamboo-base", threshold=0.1).activation == Activation("fatrelu", 0.1, on_up=True)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"eos_token_id": [5, 6, 5]}, (5, 6)),
        ({"eos_token_id": None}, ()),
        ({"eos_token_id": "absent"}, (2,)),
        ({"eos_token_id": -1}, ()),
    ],
)
def test_end_of_sequence_ids(keys, expected):
    assert ModelConfig.from_hf(llama(**keys)).eos_token_ids == expected


def test_folder_merges_generation_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama()))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert ModelConfig.from_hf(tmp_path).eos_token_ids == (2, 7)
    assert ModelConfig.from_hf(tmp_path / "config.json").eos_token_ids == (2,)


def test_defaults_of_missing_keys():
    absent = ["num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "pad_token_id"]
    config = ModelConfig.from_hf(llama(**dict.fromkeys(absent, "absent")))
    assert (config.kv_heads, config.norm_eps, config.tied_embeddings) == (32, 1e-6, False)
    assert (config.bos_token_id, config.pad_token_id) == (1, None)
