"""MiniCPM-V: its language model runs on token ids and on embeddings, and nothing of its vision side is read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from float64_forward import forward
from parity.rows import ROWS, Row
from safetensors.torch import load_file, save_file
from tiny_engine import assert_logits_close, some_tokens
from tiny_vision import write_minicpmv

import prosparse
from prosparse.config import ModelConfig
from prosparse.engine.session import Session
from prosparse.errors import CheckpointError, UnsupportedError
from prosparse.weights import Checkpoint, convert

VISION = [row for row in ROWS if row.write is write_minicpmv]
IDS = some_tokens(30, seed=8)


@pytest.mark.parametrize("row", VISION, ids=lambda row: row.model)
def test_embeddings_of_a_vision_tower(row: Row, tmp_path: Path) -> None:
    """12 of 30 tokens are an image: rows that are no token's, and that MiniCPM does not scale."""
    folder = row.make(tmp_path / "model")
    engine = prosparse.load(folder, weights="fp32")
    embeds = engine.embed(IDS)
    embeds[5:17] = torch.randn(12, embeds.shape[1], generator=torch.Generator().manual_seed(2))
    session = Session(engine.decoder, engine.kv_dtype, 1, 64)
    logits = torch.cat([engine.decoder.logits(hidden) for hidden in session.prefill(embeds, chunk=9)])
    assert_logits_close(logits, forward(folder, IDS, embeds).logits, f"{row.model}, embeddings")
    found = engine.generate(inputs_embeds=embeds, max_new_tokens=6, ignore_eos=True).token_ids
    longer = torch.cat((embeds, engine.embed(found)))
    greedy = forward(folder, [*IDS, *found], longer).logits[len(IDS) - 1 : -1].argmax(1)
    assert found == tuple(greedy.tolist())


@pytest.mark.parametrize("row", VISION, ids=lambda row: row.model)
def test_the_vision_side_is_not_read_and_that_is_said(
    row: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = row.make(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["vpm.post_layernorm.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr(logging.getLogger("prosparse"), "propagate", True)
    engine = prosparse.load(folder, weights="fp32")
    assert "its vision tensors (vpm, resampler) are not read" in caplog.text
    assert len(engine.generate("abc", max_new_tokens=3, ignore_eos=True).token_ids) == 3


def test_what_the_published_configs_say() -> None:
    configs = {row.config: ModelConfig.from_hf(row.published()) for row in VISION}
    two, llama3, qwen2 = configs["minicpm-v-2"], configs["minicpm-llama3-v-2_5"], configs["minicpm-v-2_6"]
    assert (two.family, two.embed_scale, two.attention_bias, two.eos_token_ids) == ("minicpm", 12.0, False, (2,))
    assert (llama3.family, llama3.attention_bias, llama3.eos_token_ids) == ("llama", False, (128001, 128009))
    assert (qwen2.attention_bias, qwen2.sliding_window, qwen2.eos_token_ids) == (True, None, (151645, 151643))
    assert {config.tensor_prefix for config in configs.values()} == {"llm."}
    without = {key: value for key, value in VISION[1].published().items() if key != "version"}
    assert ModelConfig.from_hf(without) == llama3  # its first revisions do not say their version


@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_a_converted_folder_holds_the_language_model_under_its_names(weights: str, tmp_path: Path) -> None:
    folder = VISION[2].make(tmp_path / "model")
    made = convert(folder, tmp_path / "made", weights)
    names = set(load_file(made / "model.safetensors"))
    assert names == {name for name in load_file(folder / "model.safetensors") if name.startswith("llm.")}
    found, expected = (prosparse.load(each, weights=weights).logits(IDS) for each in (made, folder))
    assert torch.equal(found, expected)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    folder = VISION[2].make(tmp_path / "model")

    def attempt(**keys: Any) -> None:
        changed = json.loads((folder / "config.json").read_text()) | keys
        prosparse.load(folder if not keys else _written(tmp_path / "other", folder, changed), weights="fp32")

    with pytest.raises(UnsupportedError, match=r"version is 4.5; of MiniCPM-V the language models of 2.0, 2.5, 2.6"):
        attempt(version=4.5)
    with pytest.raises(UnsupportedError, match="use_sliding_window is true"):
        attempt(use_sliding_window=True)
    with pytest.raises(CheckpointError, match="llama model does not have: llm.model.layers.0.self_attn.k_proj.bias"):
        attempt(version="2.5")
    tensors = load_file(folder / "model.safetensors")
    norm = "llm.model.layers.1.input_layernorm.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != norm}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 of 39 tensors are missing: {norm}"):
        attempt()
    save_file(tensors | {norm: torch.ones(9)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{norm} is \[9\], but config.json makes it \[56\]"):
        attempt()
    save_file(tensors | {"tts.head.weight": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tts.head.weight is no tensor of the language model \(llm.\*\)"):
        attempt()
    save_file({f"llm.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="num_hidden_layers 3, but the weights have 0 layers"):
        attempt()


def _written(folder: Path, source: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_names_without_a_prefix_are_as_they_were(tmp_path: Path) -> None:
    folder = VISION[0].make(tmp_path / "model")
    whole = Checkpoint(folder)
    assert "llm.lm_head.weight" in whole and "vpm.post_layernorm.weight" in whole
    own = Checkpoint(folder, "llm.", ("vpm.", "resampler."))
    assert [f"llm.{name}" for name in own.names()] == [name for name in whole.names() if name.startswith("llm.")]
    assert torch.equal(own.read("lm_head.weight"), whole.read("llm.lm_head.weight"))
