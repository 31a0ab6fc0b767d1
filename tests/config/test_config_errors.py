"""Configs that cannot be run: each gets its own error, which names the file and the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prosparse.config import ModelConfig, RopeConfig
from prosparse.errors import ConfigError, MissingFileError, UnsupportedError

MOE = {"model_type": "minicpm", "hidden_act": "silu", "num_experts": 8}
OPT = {"model_type": "opt"}
FALCON = {"model_type": "falcon", "activation": "relu", "new_decoder_architecture": True}
LLAMA = json.loads((Path(__file__).parent.parent / "fixtures" / "configs" / "relullama-7b.json").read_text())
MINICPM = json.loads((Path(__file__).parent.parent / "fixtures" / "configs" / "minicpm-s-1b-sft.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"hidden_size": 64', "not valid JSON at line 1"),
        (b"", "not valid JSON"),
        (b"<!DOCTYPE html>", "not valid JSON"),
        (b"[1, 2]", "expected a JSON object, got .* \\(a list\\)"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"hidden_size": 64, "hidden_size": 65}', "'hidden_size' appears twice"),
        (b"{}", "neither model_type nor architectures"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_file_that_is_no_config(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.from_hf(tmp_path)
    assert str(path) in str(caught.value)


def test_path_that_is_no_model(tmp_path):
    with pytest.raises(MissingFileError, match="no such file or folder"):
        ModelConfig.from_hf(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="has no config.json"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        ModelConfig.from_hf(tmp_path)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("hidden_size", ["64", 64.0, True, 0, -1, None, 2**40, [64], "absent"]),
        ("intermediate_size", ["two", -5, "absent"]),
        ("num_hidden_layers", ["two", 0, 2**31]),
        ("num_attention_heads", [0, "32"]),
        ("num_key_value_heads", [0, 3]),
        ("head_dim", [0, 63, "64"]),
        ("vocab_size", [0, "absent"]),
        ("max_position_embeddings", [0, 1.5]),
        ("rms_norm_eps", [0, -1e-5, float("nan"), float("inf"), "1e-5", True, 10**400]),
        ("rope_theta", [0, float("nan"), "1e4"]),
        ("tie_word_embeddings", [1, "true"]),
        ("hidden_act", [3, ["relu"]]),
        ("eos_token_id", ["2", True, [1.5], [-3], -2, {}]),
        ("bos_token_id", [True, "1", 32000]),
        ("pad_token_id", [-2, 0.0]),
        ("rope_scaling", ["linear", []]),
        ("architectures", ["LlamaForCausalLM", [1]]),
        ("model_type", [7]),
        ("num_experts", [-1, "8"]),
    ],
)
def test_value_of_the_wrong_type_or_range(key, values):
    for value in values:
        config = LLAMA | {key: value}
        if value == "absent":
            del config[key]
        with pytest.raises(ConfigError, match=rf"^config: {key} must be .*, got "):
            ModelConfig.from_hf(config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type is 'gpt2'.*are llama, sparsellama, minicpm, bamboo, opt, falcon, minicpmv .ReluLL",
        ),
        ({"model_type": "minicpm3"}, "model_type is 'minicpm3'"),
        ({"model_type": None, "architectures": ["MixtralForCausalLM"]}, "architectures is .*Mixtral"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; llama models run with relu, fatrelu, relu2, silu"),
        ({"model_type": "bamboo", "hidden_act": "silu"}, "bamboo models run with relu, fatrelu"),
        ({"num_experts": 8}, "num_experts is 8; of models with experts only MiniCPM-MoE runs"),
        ({"model_type": "minicpm", "num_experts": 8}, "num_experts is 8 and hidden_act 'relu'; experts run with silu"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; llama models run with relu, fatrelu, relu2, silu, swish$"),
        (
            {"model_type": "opt", "activation_function": "gelu"},
            "activation_function is 'gelu'; opt models run",
        ),
        ({"model_type": "opt", "layer_norm_elementwise_affine": False}, "only norms with weights run"),
        (
            {"model_type": "falcon"},
            "activation is not given, which means 'gelu'; falcon models run.*ReluFalcon",
        ),
        ({"model_type": "falcon", "activation": "gelu"}, "activation is 'gelu'; falcon models run with relu"),
        ({"model_type": "falcon", "activation": "relu", "alibi": True}, "alibi is true; Falcon runs with rotary"),
        ({"model_type": "falcon", "activation": "relu", "parallel_attn": False}, "parallel_attn is false"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'; supported are default, linear"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "type is 'longrope'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(keys, message):
    with pytest.raises(UnsupportedError, match=message):
        ModelConfig.from_hf(LLAMA | keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"num_attention_heads": 33, "num_key_value_heads": 33},
            "num_attention_heads must be a divisor of hidden_size",
        ),
        ({"hidden_act": "fatrelu"}, "hidden_act_param must be the threshold.*--fatrelu-threshold.*got no such key"),
        ({"hidden_act": "fatrelu", "hidden_act_param": -0.1}, "hidden_act_param must be .*got -0.1"),
        ({"hidden_act": "fatrelu", "hidden_act_param": "0.1"}, "hidden_act_param must be .*a string"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor must be given"),
        ({**MOE, "num_experts_per_tok": None}, "num_experts_per_tok must be given"),
        ({**MOE, "num_experts_per_tok": 9}, "num_experts_per_tok must be at most num_experts .8., got 9"),
        (
            {**OPT, "num_attention_heads": 33},
            "num_attention_heads must be such that hidden_size .4096.",
        ),
        ({**FALCON, "num_kv_heads": 3}, "num_kv_heads must be a divisor of num_attention_heads .32., got 3"),
        ({**FALCON, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn must be 1 or 2 with new_decoder_architect"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling: factor must be at least 1"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_parameters: rope_type must be a string"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "rope_scaling: high_freq_factor must be above low_freq_factor",
        ),
    ],
    ids=str,
)
def test_keys_that_need_each_other(keys, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(LLAMA | keys)


@pytest.mark.parametrize("key", ["scale_emb", "scale_depth", "dim_model_base"])
@pytest.mark.parametrize("value", [0, -1.4, float("inf"), "12", True])
def test_minicpm_scale_that_is_no_factor(key, value):
    with pytest.raises(ConfigError, match=f"{key} must be a finite number above 0"):
        ModelConfig.from_hf(MINICPM | {key: value})


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), True, "0.1"])
def test_threshold_that_is_no_threshold(threshold):
    with pytest.raises(ConfigError, match="--fatrelu-threshold must be a finite number of at least 0"):
        ModelConfig.from_hf(LLAMA, threshold)


@pytest.mark.parametrize("hidden_act", ["silu", "relu2"])
def test_threshold_for_a_model_without_one(hidden_act):
    with pytest.raises(ConfigError, match=f"--fatrelu-threshold applies to relu and fatrelu.*{hidden_act}"):
        ModelConfig.from_hf(LLAMA | {"hidden_act": hidden_act}, 0.1)


def test_remote_code_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(json.dumps(MINICPM | {"auto_map": {"AutoConfig": "evil.Config"}}))
    assert ModelConfig.from_hf(tmp_path).family == "minicpm"


def test_rope_is_checked_when_made():
    with pytest.raises(ConfigError, match="kind is 'yarn'"):
        RopeConfig("yarn")
    with pytest.raises(ConfigError, match="theta must be a finite number above 0"):
        RopeConfig(theta=float("nan"))
