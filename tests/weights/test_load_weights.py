"""Weights in memory are the tensors of the checkpoint, in the layout of the kernels."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import FAMILIES, write_tiny, write_weights
from watched_memory import anonymous_bytes

from prosparse.config import ModelConfig
from prosparse.errors import CheckpointError, MachineError, UserError
from prosparse.kernels.weight import FORMATS
from prosparse.weights import Checkpoint, ModelWeights, load_weights
from prosparse.weights.memory import HUGE_PAGE
from prosparse.weights.reader import BLOCK_ROWS


def load(folder: Path, fmt: str = "auto", **options) -> ModelWeights:
    return load_weights(Checkpoint(folder), ModelConfig.from_hf(folder), fmt, **options)


def change(folder: Path, **replaced) -> dict[str, torch.Tensor]:
    """Rewrite a one-file checkpoint; a tensor replaced by None is removed."""
    tensors = load_file(folder / "model.safetensors") | replaced
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    write_weights(folder, tensors)
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_arrives(tmp_path, family, shards):
    folder = write_tiny(tmp_path, family=family, shards=shards, neurons=101, hidden=48)
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    loaded = load(folder)
    assert torch.equal(loaded.embed.codes, stored["model.embed_tokens.weight"])
    assert torch.equal(loaded.lm_head.codes, stored["lm_head.weight"])
    assert torch.equal(loaded.final_norm, stored["model.norm.weight"].float())
    assert len(loaded.layers) == 2
    for i, layer in enumerate(loaded.layers):
        own = {name.removeprefix(f"model.layers.{i}."): tensor for name, tensor in stored.items()}
        q, k, v = (own[f"self_attn.{part}_proj.weight"] for part in "qkv")
        assert torch.equal(layer.qkv.codes, torch.cat((q, k, v)))
        assert torch.equal(layer.o.codes, own["self_attn.o_proj.weight"])
        assert torch.equal(layer.gate.codes, own["mlp.gate_proj.weight"])
        assert torch.equal(layer.up.codes, own["mlp.up_proj.weight"])
        assert torch.equal(layer.down.codes, own["mlp.down_proj.weight"].t())
        assert layer.down.codes.is_contiguous() and layer.down.shape == layer.gate.shape == (101, 48)
        assert torch.equal(layer.attention_norm, own["input_layernorm.weight"].float())
        assert torch.equal(layer.ffn_norm, own["post_attention_layernorm.weight"].float())
        assert layer.qkv_bias is None
    assert loaded.nbytes == sum(tensor.nbytes for tensor in stored.values() if tensor.dim() == 2)


def test_matrix_larger_than_a_block_is_transposed_whole(tmp_path):
    folder = write_tiny(tmp_path, hidden=600, neurons=40, layers=1)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(load(folder).layers[0].down.codes, stored["model.layers.0.mlp.down_proj.weight"].t())


@pytest.mark.parametrize(
    ("stored", "fmt", "result"),
    [
        (torch.bfloat16, "auto", "bf16"),
        (torch.float16, "auto", "fp16"),
        (torch.float32, "auto", "bf16"),
        (torch.float32, "fp32", "fp32"),
        (torch.bfloat16, "fp16", "fp16"),
        (torch.float16, "fp32", "fp32"),
    ],
    ids=str,
)
def test_format(tmp_path, caplog, stored, fmt, result):
    folder = write_tiny(tmp_path, dtype=stored)
    with caplog.at_level(logging.INFO, "prosparse"):
        loaded = load(folder, fmt)
    layer = loaded.layers[0]
    matrices = (loaded.embed, loaded.lm_head, layer.qkv, layer.o, layer.gate, layer.up, layer.down)
    assert {matrix.format for matrix in matrices} == {result}
    assert {layer.ffn_norm.dtype, layer.attention_norm.dtype, loaded.final_norm.dtype} == {torch.float32}
    original = load_file(folder / "model.safetensors")["model.layers.0.mlp.gate_proj.weight"]
    assert torch.equal(layer.gate.codes, original.to(FORMATS[result]))
    assert ("loaded as bf16" in caplog.text) == (stored == torch.float32 and fmt == "auto")


def test_mixed_dtypes_follow_the_ffn(tmp_path):
    folder = write_tiny(tmp_path, dtype=torch.float16)
    embed = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()
    change(folder, **{"model.embed_tokens.weight": embed})
    assert load(folder).embed.format == "fp16"


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="weights is 'int3'; supported are auto, fp32, fp16, bf16"):
        load(write_tiny(tmp_path), "int3")


def test_tied_embedding_is_one_object(tmp_path):
    loaded = load(write_tiny(tmp_path, tied=True))
    assert loaded.lm_head is loaded.embed


def test_tied_config_with_equal_lm_head_stays_tied(tmp_path):
    folder = write_tiny(tmp_path, tied=True)
    embed = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, **{"lm_head.weight": embed.clone()})
    loaded = load(folder)
    assert loaded.lm_head is loaded.embed


def test_tied_config_with_another_lm_head_uses_it(tmp_path, caplog):
    folder = write_tiny(tmp_path, tied=False, tie_word_embeddings=True)
    loaded = load(folder)
    assert torch.equal(loaded.lm_head.codes, load_file(folder / "model.safetensors")["lm_head.weight"])
    assert "different lm_head" in caplog.text


def test_progress_ends_at_the_total(tmp_path):
    seen: list[tuple[int, int]] = []
    loaded = load(write_tiny(tmp_path), "fp32", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (loaded.nbytes, loaded.nbytes)


def test_attention_bias_is_read(tmp_path):
    folder = write_tiny(tmp_path, layers=1)
    biases = {f"model.layers.0.self_attn.{p}_proj.bias": torch.randn(n) for p, n in (("q", 64), ("k", 32), ("v", 32))}
    change(folder, **biases)
    values = vars(ModelConfig.from_hf(folder)) | {"attention_bias": True}
    loaded = load_weights(Checkpoint(folder), ModelConfig(**values))
    assert torch.equal(loaded.layers[0].qkv_bias, torch.cat(list(biases.values())))


def test_files_are_unmapped_at_the_end(tmp_path):
    folder = write_tiny(tmp_path, dtype=torch.float32, shards=2)
    loaded = load(folder, "fp32")
    maps = Path("/proc/self/maps").read_text()
    assert loaded.nbytes and str(folder) not in maps


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_weights_that_are_not_finite(tmp_path, name, bad):
    folder = write_tiny(tmp_path)
    tensor = load_file(folder / "model.safetensors")[name]
    tensor.view(-1)[-2:] = bad
    change(folder, **{name: tensor})
    with pytest.raises(CheckpointError, match=f"{name} has 2 of {tensor.numel()} weights that are NaN or infinite"):
        load(folder)


def test_overflow_of_fp16_names_the_way_out(tmp_path):
    folder = write_tiny(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = load_file(folder / "model.safetensors")[name]
    tensor[3, 4] = 1e5
    change(folder, **{name: tensor})
    with pytest.raises(CheckpointError, match=f"{name} has weights beyond the range of fp16; use --weights bf16"):
        load(folder, "fp16")
    assert load(folder, "bf16").layers[0].up.codes[3, 4] == tensor[3, 4]


def test_too_little_memory_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("prosparse.weights.memory.available_memory", lambda: 1000)
    with pytest.raises(MachineError, match=r"need .* GiB as bf16, but 0.0 GiB of cpu memory are free"):
        load(write_tiny(tmp_path))


@pytest.mark.parametrize(
    ("fits", "cure"),
    [
        (("int8", "int4"), r"--weights int8 \(0.0 GiB\) or --weights int4 \(0.0 GiB\) would fit"),
        (("int4",), r"--weights int4 \(0.0 GiB\) would fit"),
        ((), "close other programs or use a smaller model"),
    ],
    ids=["two", "one", "none"],
)
def test_too_little_memory_of_a_gpu_names_what_would_fit(tmp_path, monkeypatch, fits, cure):
    folder = write_tiny(tmp_path, hidden=128)
    free = load(folder, fits[0]).nbytes if fits else 1000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    with pytest.raises(MachineError, match=f"need 0.0 GiB as bf16, but 0.0 GiB of cuda memory are free; {cure}"):
        load(folder, "bf16", device="cuda")


@pytest.mark.parametrize(
    ("fmt", "layout"), [("auto", "rows"), ("bf16", "bundled"), ("int8", "rows"), ("int4", "bundled")]
)
def test_memory_holds_little_but_the_weights(tmp_path, fmt, layout):
    """200 MB of fp32 become 100 MB of bf16 or less; anonymous memory is watched at every step."""
    sizes = dict(hidden=512, neurons=4096, layers=6, heads=8, kv_heads=8, head_dim=64, vocab=4096)
    folder = write_tiny(tmp_path, dtype=torch.float32, **sizes)
    peak = 0

    def watch(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    before = anonymous_bytes()
    loaded = load(folder, fmt, progress=watch, layouts=[layout] * 6)
    slack = 2 * HUGE_PAGE + 3 * BLOCK_ROWS * 4096 * 4  # the ends of the arena, and what a block becomes on its way
    assert peak - before < 1.02 * loaded.nbytes + slack, (
        f"{(peak - before) / 1e6:.0f} MB for {loaded.nbytes / 1e6:.0f} MB"
    )


def test_dtype_that_is_no_weight_format(tmp_path):
    folder = write_tiny(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.gate_proj.weight"] = torch.ones(96, 64, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="gate_proj.weight is int8; only fp32, fp16, bf16 checkpoints are read"):
        load(folder)
